# SPDX-License-Identifier: MIT OR Apache-2.0
"""Reads, overwrites and sequential transfers: what a disk costs over a raw file."""
import contextlib

from harness import Absent, Driver, Row, command, memory_available, qemu_bench, scattered

TABLE = 'Reads and overwrites'
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
ENGINES = {'raw': 'raw', 'ours': 'qcow2', 'imago': 'imago', 'qcow2-rs': 'qcow2rs'}
# With the bare system call to the image file at the right place.
WITH_FLOOR = {'raw': 'raw', 'floor': 'floor', **ENGINES}


def big_size(env):
    """4 GiB where two files of that size can be locked in memory beside everything else."""
    size = 4 * GIB // env.scale
    while size > 256 * MIB and memory_available() < 3 * size:
        size //= 2
    return size


def fill(env, engine, path, size, options=''):
    with Driver(env) as driver:
        driver(f'create {engine} {path} {size} {options}')
        driver(f'open disk {engine} {path} rw')
        driver(f'run disk op=write order=seq bs=1M span={size}')
        driver('close disk')


def pair(env, name, size):
    """A raw file and an image with the same contents."""
    fill(env, 'raw', env.path(f'{name}.raw'), size)
    fill(env, 'qcow2', env.path(f'{name}.qcow2'), size)
    return env.path(f'{name}.raw'), env.path(f'{name}.qcow2')


@contextlib.contextmanager
def opened(env, raw, image, how='', engines=None, options=''):
    """One process for each engine, with the disk open; {variant: function of a command}."""
    drivers, calls = [], {}

    def absent(_):
        raise Absent('')
    for variant, engine in (engines or ENGINES).items():
        try:
            env.need(engine)
        except Absent:
            calls[variant] = absent
            continue
        driver = Driver(env)
        drivers.append(driver)
        mine = options if engine == 'qcow2' else ''
        try:
            driver(f'open disk {engine} {raw if engine == "raw" else image} {how} {mine}')
        except RuntimeError as error:
            env.note(f'{variant} does not open {image}: {error}')
            calls[variant] = absent
        else:
            calls[variant] = driver
    try:
        yield calls
    finally:
        for driver in drivers:
            driver.end()


def warmed(env, *paths):
    """A process that holds the files' pages in memory until it ends."""
    driver = Driver(env)
    for path in paths:
        driver(f'warm {path}')
    return driver


def runs(calls, text):
    """The same `run` for every engine; each round has a seed of its own."""
    return {variant: (lambda round, call=call: call(f'run disk {text} seed={round + 1}'))
            for variant, call in calls.items()}


def random_reads(env, rows):
    for name, size, count in (('read-4g', big_size(env), 300000), ('read-hot', 32 * MIB, 300000)):
        raw, image = pair(env, 'read', size)
        with warmed(env, raw, image), opened(env, raw, image, engines=WITH_FLOOR) as calls:
            variants = runs(calls, f'bs=4k span={size} count={count // env.scale}')
            for title, depth in (('QEMU', 1), ('QEMU QD32', 32)):
                variants[title] = lambda _, depth=depth: qemu_bench(
                    env, image, count // 4 // env.scale, step=scattered(size, 4 * KIB), depth=depth)
            row = Row(env, TABLE, name, f'4 KiB random read, cached, {size // MIB} MiB').run(variants)
            row.reach('ours', 1.05)
            rows.append(row)
            if name == 'read-4g':
                rows.append(two_threads(env, calls, size, count))
    env.remove('read.raw', 'read.qcow2')


def two_threads(env, calls, size, count):
    """Two threads on one handle. Its base is the same with one thread on a raw file."""
    text = f'bs=4k span={size} count={count // env.scale}'
    variants = {'raw': lambda round: calls['raw'](f'run disk {text} seed={round + 1}')}
    for variant, function in runs(calls, f'{text} threads=2').items():
        variants['raw, 2 threads' if variant == 'raw' else variant] = function
    row = Row(env, TABLE, 'read-2t', '2 threads on one handle (time per operation)', metric='wall').run(variants)
    row.reach('ours', 0.55)
    return row


def overwrites(env, rows):
    size = 64 * MIB
    text = f'op=write bs=4k span={size} count={100000 // env.scale}'
    images = {variant: env.path(f'over-{engine}') for variant, engine in WITH_FLOOR.items()}
    drivers, variants = [warmed(env)], {}
    for variant, engine in WITH_FLOOR.items():
        fill(env, 'raw' if engine == 'raw' else 'qcow2', images[variant], size)
        drivers[0](f'warm {images[variant]}')

        def overwrite(round, engine=engine, path=images[variant]):
            env.need(engine)
            with Driver(env) as driver:
                driver(f'open disk {engine} {path} rw')
                # So that no write is the first one to a page since it was last written back.
                driver(f'run disk op=write bs=64k order=seq span={size}')
                return driver(f'run disk {text} seed={round + 1}')
        variants[variant] = overwrite
    for title, depth in (('QEMU', 1), ('QEMU QD32', 32)):
        variants[title] = lambda _, depth=depth: qemu_bench(
            env, images['ours'], 25000 // env.scale, step=scattered(size, 4 * KIB), depth=depth, extra=['-w'])
    row = Row(env, TABLE, 'overwrite', '4 KiB random overwrite, cached').run(variants)
    row.reach('ours', 1.05)
    rows.append(row)
    drivers[0].end()
    env.remove(*(f'over-{engine}' for engine in WITH_FLOOR.values()))


def sequential_reads(env, rows):
    size = 512 * MIB // env.scale
    raw, image = pair(env, 'seq', size)
    for name, title, how in (('seq-read', 'cached', ''), ('seq-read-direct', 'O_DIRECT', 'direct')):
        locker = warmed(env, *([] if how else [raw, image]))
        span = size // 2 if how else size
        with opened(env, raw, image, how) as calls:
            variants = runs(calls, f'order=seq bs=1M span={span}')
            variants['QEMU'] = lambda _, how=how, span=span: qemu_bench(
                env, image, span // MIB, block=MIB, cache='none' if how else 'writeback',
                extra=['-i', 'native'] if how else ())
            row = Row(env, TABLE, name, f'1 MiB sequential read, {title}', metric='wall' if how else 'cpu')
            row.run(variants).reach('ours', 1.02)
            rows.append(row)
        locker.end()
    env.remove('seq.raw', 'seq.qcow2')


def allocating_sequential(env, rows):
    size = 256 * MIB // env.scale

    def write(engine, how, start=0):
        def sample(round):
            env.need(engine)
            path = env.path(f'alloc-{engine}')
            with Driver(env) as driver:
                driver(f'create {"raw" if engine == "raw" else "qcow2"} {path} {size + start}')
                driver(f'open disk {engine} {path} rw {how}')
                used = driver(f'run disk op=write order=seq bs=1M start={start} span={size} seed={round + 1}')
                driver('close disk')
            env.remove(f'alloc-{engine}')
            return used
        return sample

    def by_qemu(cache):
        env.need('qemu')
        path = env.path('alloc-qemu')
        command(env, [env.qemu, 'create', '-q', '-f', 'qcow2', path, str(size)])
        used = qemu_bench(env, path, size // MIB, block=MIB, cache=cache,
                          extra=['-w', *(['-i', 'native'] if cache == 'none' else [])])
        env.remove('alloc-qemu')
        return used
    for name, title, how, cache in (('seq-alloc', 'cached', '', 'writeback'),
                                    ('seq-alloc-direct', 'O_DIRECT', 'direct', 'none')):
        variants = {variant: write(engine, how) for variant, engine in ENGINES.items()}
        # The same calls behind the tables of an image: not aligned to their size.
        variants['floor'] = write('raw', how, start=21 * 64 * KIB)
        variants['QEMU'] = lambda _, cache=cache: by_qemu(cache)
        row = Row(env, TABLE, name, f'1 MiB sequential allocating write, {title}', metric='wall' if how else 'cpu')
        row.run(variants).reach('ours', 1.02)
        rows.append(row)


def make_chain(env, overlays, size, name='chain'):
    """A base and overlays; each cluster is in a layer that chance has picked."""
    paths = [env.path(f'{name}-{layer}.qcow2') for layer in range(overlays + 1)]
    with Driver(env) as driver:
        for layer, path in enumerate(paths):
            backing = f'backing_file={paths[layer - 1]} backing_fmt=qcow2' if layer else ''
            driver(f'create qcow2 {path} {size} {backing}')
            driver(f'open disk qcow2 {path} rw')
            driver(f'run disk op=write order=share bs=64k span={size} part={layer} parts={overlays + 1}')
            driver('close disk')
    return paths


def chains(env, rows):
    size = 512 * MIB // env.scale
    for overlays, limit in ((1, 1.06), (4, 1.10), (16, 1.25)):
        fill(env, 'raw', env.path('chain.raw'), size)
        paths = make_chain(env, overlays, size)
        with warmed(env, env.path('chain.raw'), *paths), \
                opened(env, env.path('chain.raw'), paths[-1], engines=WITH_FLOOR) as calls:
            variants = runs(calls, f'bs=4k span={size} count={200000 // env.scale}')
            variants['QEMU'] = lambda _: qemu_bench(env, paths[-1], 50000 // env.scale,
                                                    step=scattered(size, 4 * KIB))
            row = Row(env, TABLE, f'chain-{overlays}', f'chain of {overlays} overlays, 4 KiB random read')
            row.run(variants).reach('ours', limit)
            rows.append(row)
        env.remove('chain.raw', *(f'chain-{layer}.qcow2' for layer in range(overlays + 1)))


def direct_reads(env, rows):
    size = 512 * MIB // env.scale
    raw, image = pair(env, 'direct', size)
    with opened(env, raw, image, 'direct', WITH_FLOOR) as calls:
        for name, title, text, depth, limit in (
                ('direct-qd1', 'O_DIRECT 4 KiB read, QD1', 'count=4000', 1, 1.02),
                ('direct-32', 'O_DIRECT 4 KiB read, 32 threads against io_uring QD32', 'count=32000 threads=32',
                 32, 1.02)):
            variants = runs(calls, f'bs=4k span={size} {text}')
            if depth > 1:
                variants['raw, 32 threads'] = variants.pop('raw')

                def uring(round):
                    used = calls['raw'](f'run disk bs=4k span={size} count=32000 depth={depth} seed={round + 1}')
                    if 'absent' in used:
                        raise RuntimeError('the host has no io_uring')
                    return used
                variants['io_uring'] = uring
            variants['QEMU'] = lambda _, depth=depth: qemu_bench(
                env, image, 4000 * (8 if depth > 1 else 1), step=scattered(size, 4 * KIB), depth=depth,
                cache='none', extra=['-i', 'native'])
            row = Row(env, TABLE, name, title, base='io_uring' if depth > 1 else 'raw', metric='wall').run(variants)
            if depth > 1 and 'io_uring' not in row.samples:
                row.base = 'raw, 32 threads'
            row.reach('ours', limit)
            rows.append(row)
    env.remove('direct.raw', 'direct.qcow2')


def huge(env, rows):
    """All metadata of a big disk, its data a hole; the same set of places each time, which are then cached."""
    size = 256 * GIB
    raw, image = env.path('huge.raw'), env.path('huge.qcow2')
    with Driver(env) as driver:
        driver(f'create raw {raw} {size}')
        driver(f'create qcow2 {image} {size} preallocation=metadata')
    text = f'run disk bs=4k span={size} count={100000 // env.scale} seed=7'
    with opened(env, raw, image, engines=WITH_FLOOR) as calls, \
            opened(env, raw, image, engines={'ours, 12 MiB': 'qcow2'}, options='cache-size=8M') as small:
        calls.update(small)
        variants = {variant: (lambda _, call=call: call(text)) for variant, call in calls.items()}
        variants['QEMU'] = lambda _: qemu_bench(env, image, 25000 // env.scale, step=scattered(size, 4 * KIB))
        row = Row(env, TABLE, 'huge', '256 GiB disk, random 4 KiB over all of it').run(variants)
        for variant, limit, most in (('ours', 1.15, 40 * MIB), ('ours, 12 MiB', 2.2, 12 * MIB)):
            used = calls[variant]('memory')['peak']
            row.values[variant] = {'memory': used}
            row.reach(variant, limit)
            row.reach(variant, most, used, what='bytes of memory')
        for variant in ('imago', 'qcow2-rs'):
            if variant in row.samples:
                row.values[variant] = {'memory': calls[variant]('memory')['peak']}
        if 'QEMU' in row.samples:
            row.values['QEMU'] = {'memory': max(sample['memory'] for sample in row.samples['QEMU'])}
    rows.append(row)
    env.remove('huge.raw', 'huge.qcow2')


WORKLOADS = {'read': random_reads, 'overwrite': overwrites, 'seq-read': sequential_reads,
             'seq-alloc': allocating_sequential, 'chain': chains, 'direct': direct_reads, 'huge': huge}
