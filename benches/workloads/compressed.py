# SPDX-License-Identifier: MIT OR Apache-2.0
"""Compressed images. The base is the codec alone: one read of the stream, libdeflate or libzstd, the last cluster kept."""
import os

from harness import Driver, Row, command, qemu_bench, scattered
from workloads.reads import opened, runs

TABLE = 'Compressed images'
MIB = 1 << 20
ENGINES = {'codec': 'codec', 'ours': 'qcow2', 'imago': 'imago', 'qcow2-rs': 'qcow2rs'}


def text(env, size):
    """A raw disk of words, which zlib makes about two fifths of."""
    path = env.path('text.raw')
    if not os.path.exists(path):
        with Driver(env) as driver:
            driver(f'create raw {path} {size}')
            driver(f'open disk raw {path} rw')
            driver(f'run disk op=write order=seq bs=64k span={size} data=text')
    return path


def compress(env, kind, size):
    image = env.path(f'{kind}.qcow2')
    tool = env.qemu or env.img
    command(env, [tool, 'convert', '-c', '-f', 'raw', '-O', 'qcow2', '-o', f'compression_type={kind}', text(env, size), image])
    return image


def reads(env, rows):
    """Random and sequential reads; the limits are ratios, so that they hold for any machine."""
    size = 64 * MIB // env.scale
    for kind, limits in (('zlib', (85 / 78, 8 / 4.9, 805 / 750, 805 / 1300)),
                         ('zstd', (50 / 42, 8 / 4.9, 1487 / 1350, 1487 / 2600))):
        image = compress(env, kind, size)
        engines = dict(ENGINES)
        if kind == 'zstd':
            del engines['imago'], engines['qcow2-rs']  # they do not read zstd
        with opened(env, None, image, engines=engines) as calls:
            for name, title, block, command_text, qemu, limit in (
                    ('random', 'random 4 KiB', 4096, f'bs=4k span={size} count={1500 // env.scale}',
                     dict(count=1500 // env.scale, step=scattered(size, 4096)), limits[0]),
                    ('seq', 'sequential 4 KiB', 4096, f'order=seq bs=4k span={size} count={4096 // env.scale}',
                     dict(count=4096 // env.scale), limits[1]),
                    ('seq-1m', 'sequential 1 MiB', MIB, f'order=seq bs=1M span={size}',
                     dict(count=size // MIB, block=MIB), limits[2])):
                variants = runs(calls, command_text)
                variants['QEMU'] = lambda _, q=qemu: qemu_bench(env, image, **q)
                if block == MIB:
                    variants['QEMU QD4'] = lambda _, q=qemu: qemu_bench(env, image, depth=4, **q)
                row = Row(env, TABLE, f'{kind}-{name}', f'{kind}, {title}', base='codec').run(variants)
                row.reach('ours', limit)
                if block == MIB:
                    row.values = {n: {'rate': 1 / row.time(n)} for n in row.samples}
                rows.append(row)
            rows.append(two_threads(env, kind, calls, size, limits[3]))
        env.remove(f'{kind}.qcow2')
    env.remove('text.raw')


def two_threads(env, kind, calls, size, limit):
    """Two threads share a handle; the base is the codec in one."""
    one = f'run disk order=seq bs=1M span={size}'
    variants = {'codec': lambda round: calls['codec'](one)}
    for variant in calls:
        name = 'codec, 2 threads' if variant == 'codec' else variant
        variants[name] = lambda round, call=calls[variant]: call(f'{one} threads=2')
    row = Row(env, TABLE, f'{kind}-2t', f'{kind}, sequential 1 MiB, 2 threads', base='codec', metric='wall')
    row.run(variants).reach('ours', limit)
    row.values = {n: {'rate': 1 / row.time(n)} for n in row.samples}
    return row


def converts(env, rows):
    size = 256 * MIB // env.scale
    source = text(env, size)
    for kind, limit in (('zlib', 1 / 2.0), ('zstd', 1 / 1.8)):
        def convert(tool, kind=kind):
            target = env.path('converted.qcow2')
            env.remove('converted.qcow2')
            return command(env, [tool, 'convert', '-c', '-m', '8', '-W', '-f', 'raw', '-O', 'qcow2', '-o',
                            f'compression_type={kind}', source, target])

        def by_qemu(_, convert=convert):
            env.need('qemu')
            return convert(env.qemu)
        row = Row(env, TABLE, f'convert-{kind}', f'convert -c {kind}, -m 8 -W', base='QEMU', metric='wall')
        row.run({'QEMU': by_qemu, 'ours': lambda _, convert=convert: convert(env.img)}, rounds=3 if env.scale > 1 else 5,
                warmup=False)
        row.values = {n: {'rate': size / MIB / row.time(n)} for n in row.samples}
        row.reach('ours', limit)
        row.note_memory('QEMU')
        rows.append(row)
    env.remove('converted.qcow2', 'text.raw')


WORKLOADS = {'compressed': reads, 'convert-c': converts}
