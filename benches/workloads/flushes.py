# SPDX-License-Identifier: MIT OR Apache-2.0
"""Allocating 4 KiB writes with a flush after each: what lazy refcounts and refcounts ahead are for."""
from harness import Absent, Driver, Row, command, qemu_bench, trace

TABLE = 'Allocating 4 KiB writes, a flush after each'
MIB = 1 << 20
# Variant: engine, options of create, options of open.
VARIANTS = {
    'raw': ('raw', '', ''),
    'floor lazy': ('floor-lazy', '', ''),
    'floor eager': ('floor-eager', '', ''),
    'ours lazy': ('qcow2', 'lazy_refcounts=on', ''),
    'ours eager': ('qcow2', '', ''),
    'imago': ('imago', '', ''),
    'qcow2-rs': ('qcow2rs', '', ''),
}
# The same, durable by the cache mode instead of by flushes.
WRITETHROUGH = {
    'ours lazy, writethrough': ('qcow2', 'lazy_refcounts=on', 'cache=writethrough'),
    'ours eager, writethrough': ('qcow2', '', 'cache=writethrough'),
}
QEMU = {'QEMU lazy': ('qcow2', 'lazy_refcounts=on'), 'QEMU eager': ('qcow2', ''), 'QEMU QED': ('qed', '')}


def script(path, engine, create, options, run, span):
    """What the driver is told for one sample on a new disk."""
    kind = 'qcow2' if engine in ('qcow2', 'imago', 'qcow2rs') else 'raw'
    return (f'create {kind} {path} {span + 8 * MIB} {create}', f'open disk {engine} {path} rw {options}',
            f'run disk op=write bs=4k span={span} {run}', 'close disk')


def sample(env, tmpfs, engine, create, options, run, span, counted=False):
    env.need(engine)
    name = f'flush-{engine}'
    with Driver(env, counted) as driver:
        lines = script(env.path(name, tmpfs), engine, create, options, run, span)
        used = [driver(line) for line in lines][2]
    env.remove(name)
    return used


def by_qemu(env, tmpfs, form, create, operations, extra, cache='writeback'):
    env.need('qemu')
    path = env.path('flush-qemu', tmpfs)
    command(env, [env.qemu, 'create', '-q', '-f', form, *(['-o', create] if create else []), path,
             str(operations * 65536)])
    used = qemu_bench(env, path, operations, step=65536, cache=cache, extra=['-w', *extra], form=form)
    env.remove('flush-qemu')
    return used


def reach_flushed(row, lazy, eager):
    row.reach('ours lazy', lazy)
    row.reach('ours eager', eager)


def flushed(env, rows):
    """One row for each file system; the calls counted by a preloaded library and once by strace."""
    counts = counted(env)
    for name, tmpfs, operations, lazy, eager in (('flush-ext4', False, 128, 1.10, 1.15),
                                                 ('flush-tmpfs', True, 8192, 2.0, 2.5)):
        span = operations // env.scale * 65536
        variants = {}
        for variant, (engine, create, options) in VARIANTS.items():
            variants[variant] = lambda _, e=engine, c=create, o=options: sample(
                env, tmpfs, e, c, o, 'order=stride flush=1', span)
        for variant, (engine, create, options) in WRITETHROUGH.items():
            variants[variant] = lambda _, e=engine, c=create, o=options: sample(
                env, tmpfs, e, c, o, 'order=stride', span)
        for variant, (form, create) in QEMU.items():
            variants[variant] = lambda _, f=form, c=create: by_qemu(
                env, tmpfs, f, c, span // 65536, ['--flush-interval=1'])
        title = 'tmpfs (CPU cost)' if tmpfs else 'on a disk'
        row = Row(env, TABLE, name, f'4 KiB allocating write and flush, {title}',
                  metric='cpu' if tmpfs else 'wall')
        row.run(variants, warmup=tmpfs)
        reach_flushed(row, lazy, eager)
        row.reach('ours lazy, writethrough', lazy)
        row.reach('ours eager, writethrough', eager)
        if not tmpfs:
            row.reach('ours eager, writethrough', 1.0, base='QEMU lazy')
            row.values = counts
            for variant, limits in (('ours lazy', (2.05, 8300, 1.05)), ('ours eager', (2.10, 8800, 1.10)),
                                    ('ours lazy, writethrough', (2.05, 8300, 1.05)),
                                    ('ours eager, writethrough', (2.10, 8800, 1.10))):
                for key, limit in zip(('writes', 'written_bytes', 'syncs'), limits):
                    row.reach(variant, limit, counts[variant][key], what=f'{key} per operation')
        rows.append(row)


def counted(env, operations=4096):
    """Writes, bytes and syncs of one operation."""
    found, span = {}, operations * 65536
    keys = ('writes', 'written_bytes', 'syncs', 'others')
    for variant, (engine, create, options) in {**VARIANTS, **WRITETHROUGH}.items():
        run = 'order=stride' if 'writethrough' in options else 'order=stride flush=1'
        try:
            used = sample(env, True, engine, create, options, run, span, counted=True)
        except Absent:
            continue
        except RuntimeError as error:
            env.note(f'{variant}: {error}')
            continue
        found[variant] = {key: used[key] / operations for key in keys}
        if variant == 'ours eager':
            confirm(env, found[variant], script(env.path('flush-strace', True), engine, create, options, run, span),
                    operations)
            env.remove('flush-strace')
    for variant, (form, create) in QEMU.items():
        try:
            found[variant] = counted_qemu(env, form, create)
        except Absent:
            break
    return found


def confirm(env, counts, lines, operations):
    """What the preloaded library has counted is what strace sees."""
    try:
        seen = trace(env, [env.driver], '\n'.join(lines) + '\n')
    except Absent as reason:
        env.note(f'system calls are not confirmed: {reason}')
        return
    for key in ('writes', 'written_bytes', 'syncs'):
        if seen[key] / operations != counts[key]:
            raise RuntimeError(f'{key}: strace has {seen[key] / operations} for an operation, the counter {counts[key]}')
    env.note(f'strace confirms: {seen["writes"]} writes, {seen["written_bytes"]} bytes and {seen["syncs"]} syncs '
             f'for {operations} operations of ours (eager)')


def counted_qemu(env, form, create, few=256, many=1280):
    """The difference of two runs, so that opening and closing cancel out."""
    env.need('qemu')
    path, both = env.path('flush-qemu', True), []
    for operations in (few, many):
        command(env, [env.qemu, 'create', '-q', '-f', form, *(['-o', create] if create else []), path, str(many * 65536)])
        both.append(trace(env, [env.qemu, 'bench', '-f', form, '-w', '-t', 'writeback', '-c', str(operations), '-d', '1',
                                '-s', '4096', '-S', '65536', '--flush-interval=1', path]))
    env.remove('flush-qemu')
    return {key: (both[1][key] - both[0][key]) / (many - few) for key in both[0]}


def threads(env, rows):
    """Barriers of threads that flush at once are one sync."""
    operations = 1024 // env.scale
    variants = {}
    for variant in ('raw', 'ours lazy', 'ours eager'):
        engine, create, options = VARIANTS[variant]
        variants[variant] = lambda _, e=engine, c=create, o=options: sample(
            env, False, e, c, o, 'order=stride flush=1 threads=8', operations * 65536, counted=True)
    row = Row(env, TABLE, 'flush-8t', '8 threads, each with a flush after each 4 KiB allocating write', metric='wall')
    row.run(variants, warmup=False)
    for variant in ('raw', 'ours lazy', 'ours eager'):
        used = sorted(s['syncs'] / s['ops'] for s in row.samples[variant])
        row.values[variant] = {'syncs': used[len(used) // 2]}
        if variant != 'raw':
            row.reach(variant, 0.5, row.values[variant]['syncs'], what='syncs per operation')
    rows.append(row)


def writeback(env, rows):
    """No flush until the end, which counts."""
    for name, tmpfs, limit in (('writeback-ext4', False, 1.0), ('writeback-tmpfs', True, 1.3)):
        span = (8192 if tmpfs else 2048) // env.scale * 65536
        variants = {}
        for variant in ('raw', 'ours lazy', 'ours eager', 'imago', 'qcow2-rs'):
            engine, create, options = VARIANTS[variant]
            variants[variant] = lambda _, e=engine, c=create, o=options: sample(
                env, tmpfs, e, c, o, 'order=stride final=1', span)
        # Where an image has its data: behind tables.
        def floor(_, tmpfs=tmpfs, span=span):
            return sample(env, tmpfs, 'raw', '', '', f'order=stride final=1 start={21 * 65536}', span)
        variants = {'raw': variants['raw'], 'floor': floor, **variants}
        variants['QEMU eager'] = lambda _: by_qemu(env, tmpfs, 'qcow2', '', span // 65536,
                                                 [f'--flush-interval={span // 65536}'])
        title = 'tmpfs' if tmpfs else 'on a disk'
        row = Row(env, TABLE, name, f'4 KiB allocating writes, one flush at the end, {title}',
                  metric='cpu' if tmpfs else 'wall')
        row.run(variants, warmup=tmpfs)
        row.reach('ours lazy', limit)
        row.reach('ours eager', limit)
        rows.append(row)


def random_order(env, rows):
    """The same, all over the disk: each write may be in another table."""
    for name, tmpfs, operations in (('flush-random-ext4', False, 256), ('flush-random-tmpfs', True, 4096)):
        variants = {}
        span = (operations // env.scale) * 64 * 65536
        for variant in ('raw', 'ours lazy', 'ours eager'):
            engine, create, options = VARIANTS[variant]
            run = f'order=perm stride=64k flush=1 count={operations // env.scale}'
            variants[variant] = lambda _, e=engine, c=create, o=options, r=run: sample(env, tmpfs, e, c, o, r, span)
        title = 'tmpfs' if tmpfs else 'on a disk'
        row = Row(env, TABLE, name, f'4 KiB allocating write and flush, all over the disk, {title}',
                  metric='cpu' if tmpfs else 'wall')
        rows.append(row.run(variants, warmup=tmpfs))


WORKLOADS = {'flush': flushed, 'flush-8t': threads, 'flush-random': random_order, 'writeback': writeback}
