# SPDX-License-Identifier: MIT OR Apache-2.0
"""What cost grows with: time and memory against one size after the other."""
from harness import Driver
from workloads.reads import make_chain

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
READS = 100000


class Series:
    """One line of points: x is what grows, each point has times and bytes. `flat`: what must not grow with it."""

    def __init__(self, name, title, x, law, flat=()):
        self.name, self.title, self.x, self.law, self.flat, self.points = name, title, x, law, flat, []

    def record(self):
        return vars(self)


def microseconds(used):
    return used['wall'] / used['ops'] * 1e6


def cpu_microseconds(used):
    return (used['user'] + used['system']) / used['ops'] * 1e6


def median_of(driver, text, key=cpu_microseconds, rounds=5):
    return sorted(key(driver(text)) for _ in range(rounds))[rounds // 2]


def label(size):
    for unit, name in ((TIB, 'TiB'), (GIB, 'GiB'), (MIB, 'MiB'), (KIB, 'KiB')):
        if size >= unit:
            return f'{size // unit} {name}'
    return str(size)


def virtual_size(env):
    """An empty disk: what open, a read of nothing, a first write, check and close cost."""
    series = Series('virtual', 'virtual size, nothing allocated', 'virtual size',
                    'open: the L1 table, 8 bytes for 512 MiB; check: the L2 tables that 1000 writes '
                    'all over the disk have made; reads and memory: nothing')
    path = env.path('growth.qcow2')
    for size in (GIB, 64 * GIB, TIB, 16 * TIB, 64 * TIB):
        with Driver(env) as driver:
            driver(f'create qcow2 {path} {size}')
            point = {'x': label(size), 'open us': median_of(driver, f'opens qcow2 {path} 20')}
            driver('memory')
            driver(f'open d qcow2 {path} rw')
            point['read us'] = median_of(driver, f'run d bs=4k span={size} count=20000')
            point['write us'] = median_of(driver, f'run d op=write bs=4k span={size} count=200')
            driver('close d')
            driver(f'open d qcow2 {path}')
            point['check us'] = median_of(driver, 'check d')
            point['memory'] = driver('memory')['peak']
        series.points.append(point)
    env.remove('growth.qcow2')
    return series


def clusters(env):
    """Mapped clusters, their data a hole: open, random reads with the default cache, check."""
    series = Series('clusters', 'mapped clusters of 64 KiB', 'clusters',
                    'check and its memory: linearly; open: the L1 table; reads: more cache misses, up to the cache')
    path = env.path('growth.qcow2')
    for count in (0, 10_000, 100_000, 1_000_000, 10_000_000 // env.scale):
        size = max(count * 64 * KIB, MIB)
        with Driver(env) as driver:
            mapped = 'preallocation=metadata' if count else ''
            point = {'x': f'{count:,}', 'create us': microseconds(driver(f'create qcow2 {path} {size} {mapped}'))}
            point['open us'] = median_of(driver, f'opens qcow2 {path} 20')
            driver(f'open d qcow2 {path}')
            point['read us'] = median_of(driver, f'run d bs=4k span={size} count=20000 seed=7')
            driver('memory')
            point['check us'] = median_of(driver, 'check d')
            point['memory'] = driver('memory')['peak']
        series.points.append(point)
    env.remove('growth.qcow2')
    return series


def cache_and_slices(env):
    """Random reads over a disk that needs 8 MiB of L2 tables, with less and less cache, and two sizes of slices."""
    path, size = env.path('growth.qcow2'), 64 * GIB
    out = []
    with Driver(env) as driver:
        driver(f'create qcow2 {path} {size} preallocation=metadata')
    for entry in (4 * KIB, 64 * KIB):
        series = Series(f'cache-{entry // KIB}k', f'L2 cache, slices of {label(entry)} (8 MiB map the whole disk)',
                        'cache', 'reads: the share of misses, each of which reads one slice; memory: the cache')
        for cache in (256 * KIB, MIB, 2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB):
            with Driver(env, counted=True) as driver:
                driver('memory')
                driver(f'open d qcow2 {path} l2-cache-size={cache} l2-cache-entry-size={entry}')
                text = f'run d bs=4k span={size} count={READS // 2 // env.scale} seed=7'
                driver(text)
                used = driver(text)
                point = {'x': label(cache), 'read us': median_of(driver, text, rounds=3),
                         'calls per read': used['reads'] / used['ops'],
                         'memory': driver('memory')['peak']}
            series.points.append(point)
        out.append(series)
    env.remove('growth.qcow2')
    return out


def chain_depth(env):
    """Overlays with clusters all over them."""
    series = Series('chain', 'overlays (clusters spread over all layers)', 'overlays',
                    'reads: one look-up in each layer above the data; open and memory: each layer')
    size = 512 * MIB // env.scale
    for overlays in (0, 1, 4, 16):
        paths = make_chain(env, overlays, size)
        with Driver(env) as driver:
            for path in paths:
                driver(f'warm {path}')
            with Driver(env) as reader:
                reader('memory')
                reader(f'open d qcow2 {paths[-1]}')
                point = {'x': str(overlays), 'read us': median_of(reader, f'run d bs=4k span={size} count={READS}'),
                         'memory': reader('memory')['peak']}
                point['open us'] = median_of(reader, f'opens qcow2 {paths[-1]} 10')
        series.points.append(point)
        env.remove(*(f'chain-{layer}.qcow2' for layer in range(overlays + 1)))
    return series


def threads(env):
    """Reads and writes of one handle by one and two threads."""
    series = Series('threads', 'threads on one handle', 'threads',
                    'nothing is shared for writing: time per read falls with each core')
    path, size = env.path('growth.qcow2'), 256 * MIB
    with Driver(env) as driver:
        driver(f'create qcow2 {path} {size}')
        driver(f'open d qcow2 {path} rw')
        driver(f'run d op=write order=seq bs=1M span={size}')
        driver('close d')
        driver(f'create raw {path}.raw {size}')
        driver(f'open r raw {path}.raw rw')
        driver(f'run r op=write order=seq bs=1M span={size}')
        driver(f'warm {path}')
        driver(f'warm {path}.raw')
        driver(f'open d qcow2 {path} rw')
        for count in (1, 2):
            point = {'x': str(count)}
            for name, disk in (('read us', 'd'), ('raw read us', 'r')):
                point[name] = median_of(driver, f'run {disk} bs=4k span={size} count={READS} threads={count}',
                                        microseconds)
            point['write us'] = median_of(driver, f'run d op=write bs=4k span={size} count={READS // 2} threads={count}',
                                          microseconds)
            series.points.append(point)
    env.remove('growth.qcow2', 'growth.qcow2.raw')
    return series


def snapshot_count(env):
    """Snapshots of a mapped disk: open, taking one, check."""
    series = Series('snapshots', 'snapshots (64 GiB mapped, 1,048,576 clusters)', 'snapshots',
                    'open: the snapshot table; taking one: the clusters of the disk; check: tables once, then each L1 table')
    path = env.path('growth.qcow2')
    with Driver(env) as driver:
        driver(f'create qcow2 {path} {64 * GIB} preallocation=metadata')
        have = 0
        for count in (0, 10, 100, 1000 // env.scale):
            driver(f'open d qcow2 {path} rw')
            taken = driver(f'snapshots d {count - have} {have}') if count > have else None
            driver('close d')
            have = count
            point = {'x': str(count), 'open us': median_of(driver, f'opens qcow2 {path} 10')}
            if taken:
                point['take one us'] = microseconds(taken)
            driver(f'open d qcow2 {path}')
            driver('memory')
            point['check us'] = median_of(driver, 'check d', rounds=3)
            point['memory'] = driver('memory')['peak']
            driver('close d')
            series.points.append(point)
    env.remove('growth.qcow2')
    return series


SERIES = (virtual_size, clusters, cache_and_slices, chain_depth, threads, snapshot_count)
