# SPDX-License-Identifier: MIT OR Apache-2.0
"""What encryption costs: AES-256-XTS with LUKS, over an image without it and beside the stock tool."""
import contextlib
import statistics

from harness import Driver, Row, command, cpu, qemu_bench, scattered
from workloads.reads import warmed

TABLE = 'Encrypted images'
KIB, MIB = 1 << 10, 1 << 20
# What the driver answers when it is asked.
SECRET = ['--object', 'secret,id=s,data=secret']


def make(env, name, size):
    """A LUKS image, full."""
    env.need('qemu')
    path = env.path(name)
    command(env, [env.qemu, 'create', '-q', *SECRET, '-f', 'qcow2', '-o',
                  'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10', path, str(size)])
    with Driver(env) as driver:
        driver(f'open disk qcow2 {path} rw')
        driver(f'run disk op=write order=seq bs=1M span={size}')
        driver('close disk')
    return path


def by_qemu(env, path, count, **how):
    """qemu-img bench takes the options of an image in place of its name."""
    image = f'driver=qcow2,encrypt.key-secret=s,file.filename={path}'
    return qemu_bench(env, image, count, form=None, extra=[*SECRET, '--image-opts', *how.pop('extra', ())], **how)


@contextlib.contextmanager
def both(env, plain, luks, how=''):
    """One process with each image open."""
    with Driver(env) as first, Driver(env) as second:
        first(f'open disk qcow2 {plain} {how}')
        second(f'open disk qcow2 {luks} {how}')
        yield {'plain': first, 'ours': second}


def more_than_plain(row):
    """Microseconds of CPU time that an operation takes more than without encryption."""
    pairs = zip(row.samples['ours'], row.samples['plain'])
    return statistics.median(cpu(a) - cpu(b) for a, b in pairs) * 1e6


def encrypted_io(env, rows):
    size = 256 * MIB // env.scale
    plain = env.path('crypt-plain.qcow2')
    with Driver(env) as driver:
        driver(f'create qcow2 {plain} {size}')
        driver(f'open disk qcow2 {plain} rw')
        driver(f'run disk op=write order=seq bs=1M span={size}')
        driver('close disk')
    luks = make(env, 'crypt-luks.qcow2', size)
    locker = warmed(env, plain, luks)
    with both(env, plain, luks, 'rw') as calls:
        for name, title, text, block, count, extra in (
                ('luks-4k', '4 KiB random read, cached', 'bs=4k', 4 * KIB, 100000, ()),
                ('luks-64k', '64 KiB random read, cached', 'bs=64k', 64 * KIB, 10000, ()),
                ('luks-1m', '1 MiB sequential read, cached', 'bs=1M order=seq', MIB, 256, ()),
                ('luks-write-4k', '4 KiB random overwrite, cached', 'op=write bs=4k', 4 * KIB, 50000, ('-w',)),
                ('luks-write-64k', '64 KiB random overwrite, cached', 'op=write bs=64k', 64 * KIB, 5000, ('-w',))):
            some = max(count // env.scale, 4)
            span = f'span={size}' if 'seq' in text else f'span={size} count={some}'
            variants = {variant: (lambda round, call=call: call(f'run disk {text} {span} seed={round + 1}'))
                        for variant, call in calls.items()}
            fewer = max(some // 4, 4)
            variants['QEMU'] = lambda _, block=block, fewer=fewer, extra=extra: by_qemu(
                env, luks, fewer, block=block, step=scattered(size, block), extra=extra)
            row = Row(env, TABLE, name, title, base='plain').run(variants)
            if name == 'luks-4k':
                row.reach('ours', 2.5, more_than_plain(row), what='us more than plain')
            row.reach('ours', 0.3, base='QEMU')
            rows.append(row)
    locker.end()
    env.remove('crypt-plain.qcow2', 'crypt-luks.qcow2')


WORKLOADS = {'luks': encrypted_io}
