# SPDX-License-Identifier: MIT OR Apache-2.0
"""What cost must not grow with: each line at two sizes, or at two kinds of file."""
import os
import statistics

from harness import Driver, command, counted_command
from workloads.growth import GIB, KIB, MIB, TIB, Series, cpu_microseconds, label, median_of, microseconds
from workloads.whole import make_stale


def power_of_two(count):
    """The largest one that is not above `count`: where places are gone through in a mixed order."""
    return 1 << max(0, int(count).bit_length() - 1)


def beside_raw(env, run, size, options='', counted=True):
    """What a run takes on a new image and on a new raw file, in memory, where the host has no disk to wait for."""
    path = env.path('steady.qcow2', True)
    with Driver(env, counted=counted) as driver:
        driver(f'create qcow2 {path} {size + MIB} {options}')
        driver('memory')
        driver(f'open d qcow2 {path} rw')
        used = driver(f'run d {run}')
        point = {'write us': cpu_microseconds(used), 'syncs': used['syncs'], 'memory': driver('memory')['peak']}
        point['close ms'] = driver('close d')['wall'] * 1e3
        env.remove('steady.qcow2')
        driver(f'create raw {path} {size}')
        driver(f'open r raw {path} rw')
        point['raw write us'] = cpu_microseconds(driver(f'run r {run}'))
    env.remove('steady.qcow2')
    point['over raw'] = point['write us'] / point['raw write us']
    return point


def unflushed(env):
    """Random allocations and no flush: what each takes must not grow with their number; memory: the tables, while the
    cache has room for them."""
    out = []
    for cluster in (64 * KIB, 512):
        # Small clusters need more tables than the cache has room for: to make some, counts are synced first.
        flat = ('over raw', 'syncs') if cluster > 512 else ()
        law = 'memory: the tables, up to the cache; small clusters: tables that have no room there'
        series = Series(f'unflushed-{cluster}', f'allocations all over the disk, no flush, clusters of {label(cluster)}',
                        'allocations', law, flat=flat)
        for count in (power_of_two(MIB // 4 // env.scale), power_of_two(MIB // env.scale)):
            size, block = count * cluster, min(cluster, 4 * KIB)
            run = f'op=write order=perm stride={cluster} bs={block} span={size} count={count}'
            series.points.append({'x': f'{count:,}', **beside_raw(env, run, size, f'cluster_size={cluster}')})
        out.append(series)
    return out


def sequential(env):
    """Large allocating writes in order: no sync that nobody asked for."""
    series = Series('sequential', '1 MiB allocating writes in order, no flush', 'written', 'nothing',
                    flat=('over raw', 'syncs', 'memory'))
    for size in (256 * MIB // env.scale, 4 * GIB // env.scale):
        series.points.append({'x': label(size), **beside_raw(env, f'op=write order=seq bs=1M span={size}', size)})
    return series


def copy_on_write(env):
    """4 KiB writes over a base: what the host holds of it, one extent or many, must not be asked for each."""
    out = []
    for tmpfs in (True, False):
        place = 'tmpfs' if tmpfs else 'on a disk'
        series = Series(f'cow-{"tmpfs" if tmpfs else "disk"}', f'4 KiB copy-on-write over a raw base, {place}',
                        'host extents of the base', 'nothing', flat=('write us', 'questions per write'))
        base, top = env.path('steady.raw', tmpfs), env.path('steady.qcow2', tmpfs)
        span = power_of_two(2 * GIB // env.scale)
        count = power_of_two(4096 // env.scale)
        for extents in (1, power_of_two(32768 // env.scale)):
            with Driver(env, counted=True) as driver:
                driver(f'create raw {base} {span}')
                driver(f'open r raw {base} rw')
                run = f'stride={span // extents} bs={8 * KIB} count={extents}' if extents > 1 else f'stride={MIB} bs=1M'
                driver(f'run r op=write order=stride span={span} {run}')
                # So that the holes, too, are pages in memory.
                driver(f'run r order=seq bs=1M span={span}')
                driver('close r')
                driver(f'create qcow2 {top} {span} backing_file={base} backing_fmt=raw')
                driver(f'open d qcow2 {top} rw')
                used = driver(f'run d op=write order=perm stride={span // count} bs=4k span={span} count={count}')
                driver('close d')
            series.points.append({'x': f'{extents:,}', 'write us': cpu_microseconds(used),
                                  'questions per write': used['questions'] / count})
            env.remove('steady.qcow2', 'steady.raw')
        out.append(series)
    return out


def random_clusters(env):
    """Clusters in random order: map, convert, compare and checksum, for each cluster."""
    out = []
    for tmpfs in (True, False):
        place = 'tmpfs' if tmpfs else 'on a disk'
        series = Series(f'order-{"tmpfs" if tmpfs else "disk"}', f'clusters of 64 KiB in random order, {place}', 'clusters',
                        'nothing: time for a cluster', flat=('map us', 'convert us', 'compare us', 'checksum us',
                                                             'map questions', 'convert questions', 'convert waits'))
        path, copy = env.path('steady.qcow2', tmpfs), env.path('copy.qcow2', tmpfs)
        for count in (power_of_two(2048 // env.scale), power_of_two(16384 // env.scale)):
            size = count * 64 * KIB
            with Driver(env, counted=True) as driver:
                driver(f'create qcow2 {path} {size}')
                driver(f'open d qcow2 {path} rw')
                driver(f'run d op=write order=perm bs=64k span={size} stride=64k')
                driver('close d')
                driver(f'open d qcow2 {path}')
                mapped = driver('map d')
                point = {'x': f'{count:,}', 'map us': median_of(driver, 'map d', per_run(count), 3),
                         'map questions': mapped['questions'] / count,
                         'checksum us': median_of(driver, 'checksum d', per_run(count), 3)}
            env.remove('copy.qcow2')
            used = counted_command(env, [env.img, 'convert', '-f', 'qcow2', '-O', 'qcow2', path, copy])
            point.update({'convert us': per_run(count)(used), 'convert questions': used['questions'] / count,
                          'convert waits': used['waits'] / count})
            used = counted_command(env, [env.img, 'compare', '-f', 'qcow2', '-F', 'qcow2', path, copy])
            point['compare us'] = per_run(count)(used)
            series.points.append(point)
            env.remove('steady.qcow2', 'copy.qcow2')
        out.append(series)
    return out


def per_run(count):
    """CPU microseconds of each of `count` things that one command did."""
    return lambda used: (used['user'] + used['system']) / count * 1e6


def whole_images(env):
    """Long runs of data: convert, compare, checksum at the speed of a read."""
    series = Series('bulk', 'data in order, in memory', 'data', 'nothing: time for a MiB',
                    flat=('checksum us', 'compare us', 'convert us', 'to raw us'))
    path, copy = env.path('steady.qcow2', True), env.path('copy.qcow2', True)
    for size in (64 * MIB // env.scale, 512 * MIB // env.scale):
        count = size // MIB
        with Driver(env) as driver:
            driver(f'create qcow2 {path} {size}')
            driver(f'open d qcow2 {path} rw')
            driver(f'run d op=write order=seq bs=1M span={size}')
            driver('close d')
            driver(f'open d qcow2 {path}')
            point = {'x': label(size), 'checksum us': median_of(driver, 'checksum d', per_run(count), 3)}
        for name, form in (('to raw us', 'raw'), ('convert us', 'qcow2')):
            env.remove('copy.qcow2')
            point[name] = per_run(count)(command(env, [env.img, 'convert', '-f', 'qcow2', '-O', form, path, copy]))
        point['compare us'] = per_run(count)(command(env, [env.img, 'compare', '-f', 'qcow2', '-F', 'qcow2', path, copy]))
        series.points.append(point)
    env.remove('steady.qcow2', 'copy.qcow2')
    return series


def warm_reads(env):
    """4 KiB reads of cached data, beside the bare system call to the same places of the same file."""
    series = Series('warm', '4 KiB reads of cached data', 'data', 'the host: pages and their tables',
                    flat=('more than the call us',))
    path = env.path('steady.qcow2', True)
    for size in (32 * MIB // env.scale, GIB // env.scale):
        with Driver(env) as driver, Driver(env) as raw:
            driver(f'create qcow2 {path} {size}')
            driver(f'open d qcow2 {path} rw')
            driver(f'run d op=write order=seq bs=1M span={size}')
            driver('close d')
            driver(f'open d qcow2 {path}')
            raw(f'open d floor {path}')
            text, samples = f'run d bs=4k span={size} count={400000 // env.scale}', []
            for _ in range(11):
                samples.append((cpu_microseconds(driver(text)), cpu_microseconds(raw(text))))
        ours, bare = (sorted(column)[len(samples) // 2] for column in zip(*samples))
        more = sorted(ours - bare for ours, bare in samples)[len(samples) // 2]
        series.points.append({'x': label(size), 'read us': ours, 'the call us': bare,
                              'more than the call us': max(more, 0.001)})
        env.remove('steady.qcow2')
    return series


def cluster_sizes(env):
    """4 KiB allocating writes in memory: smaller clusters are more entries, not a multiple of the time."""
    series = Series('small-clusters', '4 KiB allocating writes in order, in memory', 'cluster size',
                    'smaller clusters: entries and counts', flat=())
    path, count = env.path('steady.qcow2', True), 65536 // env.scale
    for cluster in (64 * KIB, 4 * KIB, 512):
        with Driver(env) as driver:
            driver(f'create qcow2 {path} {count * 4096 + MIB} cluster_size={cluster}')
            driver(f'open d qcow2 {path} rw')
            used = driver(f'run d op=write order=seq bs=4k span={count * 4096}')
            driver('close d')
            driver(f'create raw {path}.raw {count * 4096}')
            driver(f'open r raw {path}.raw rw')
            raw = driver(f'run r op=write order=seq bs=4k span={count * 4096}')
        series.points.append({'x': label(cluster), 'write us': cpu_microseconds(used),
                              'raw write us': cpu_microseconds(raw)})
        env.remove('steady.qcow2', 'steady.qcow2.raw')
    return series


def closes(env):
    """A close writes what is held, and no more for what has been written before."""
    series = Series('close', 'close after 4 KiB writes, clusters of 512 bytes', 'writes',
                    'nothing, once the cache is full', flat=('close us',))
    path = env.path('steady.qcow2', True)
    for count in (power_of_two(MIB // 8 // env.scale), power_of_two(MIB // 2 // env.scale)):
        with Driver(env) as driver:
            driver(f'create qcow2 {path} {count * 4096 + MIB} cluster_size=512')
            driver(f'open d qcow2 {path} rw l2-cache-size={4 * MIB // env.scale}')
            driver(f'run d op=write order=perm stride=4k bs=4k span={count * 4096}')
            point = {'x': f'{count:,}', 'close us': cpu_microseconds(driver('close d'))}
        series.points.append(point)
        env.remove('steady.qcow2')
    return series


def first_open(env):
    """The first open of a process: time and pages touched."""
    series = Series('first-open', 'first open in a process, all metadata there', 'virtual size',
                    'nothing', flat=('open us', 'page faults'))
    path = env.path('steady.qcow2')
    for size in (GIB, TIB // env.scale):
        with Driver(env) as driver:
            driver(f'create qcow2 {path} {size} preallocation=metadata')
        samples = []
        for _ in range(env.rounds * 2 + 1):
            with Driver(env) as driver:
                driver('memory')
                samples.append(driver(f'opens qcow2 {path} 1'))
        samples.sort(key=lambda used: used['wall'])
        middle = samples[len(samples) // 2]
        series.points.append({'x': label(size), 'open us': microseconds(middle), 'page faults': middle['faults']})
        env.remove('steady.qcow2')
    return series


def findings(env):
    """A repair with findings as text, as numbers, and untold; for each finding."""
    series = Series('findings', 'repair of refcounts that were never written', 'findings',
                    'nothing: time for a finding', flat=('untold us', 'numbers us', 'text us', 'printed us'))
    path, copy = env.path('steady.qcow2', True), env.path('copy.qcow2', True)
    for count in (power_of_two(16384 // env.scale), power_of_two(MIB // env.scale)):
        with Driver(env) as driver:
            driver(f'create qcow2 {path} {count * 64 * KIB} preallocation=metadata')
        make_stale(path, dirty=False)
        point = {'x': f'{count:,}'}
        for how in ('untold', 'numbers', 'text'):
            samples = []
            for _ in range(3):
                with Driver(env) as driver:
                    command(env, ['cp', path, copy])
                    driver(f'open d qcow2 {copy} rw')
                    samples.append(per_run(count)(driver(f'check d leaks errors {how}')))
            point[f'{how} us'] = sorted(samples)[1]
        command(env, ['cp', path, copy])
        said = env.path('steady.txt')
        used = command(env, ['sh', '-c', '"$0" check -q -r all "$1" 2>"$2"', env.img, copy, said])
        point['printed us'], point['printed bytes'] = per_run(count)(used), os.path.getsize(said) / count
        series.points.append(point)
        env.remove('steady.qcow2', 'copy.qcow2', 'steady.txt')
    return series


WRITES_PER_SECOND = 8000


def flush_tails(env):
    """How long flushes take beside writers of a fixed pace: a faster writer would give each flush more to do."""
    out = []
    for name in ('allocating', 'overwriting'):
        series = Series(f'tails-{name}', f'flushes beside {WRITES_PER_SECOND} {name} 4 KiB writes a second, on a disk',
                        'writers', 'what the writers have written meanwhile', flat=())
        for writers in (1, 8):
            found = {'': [], 'raw ': []}
            for _ in range(env.rounds):
                for engine, prefix in (('qcow2', ''), ('raw', 'raw ')):
                    found[prefix].append(tails(env, engine, name == 'allocating', writers))
            point = {'x': str(writers)}
            for prefix, all_of in found.items():
                point[f'{prefix}median ms'] = statistics.median(used['flush_median'] for used in all_of) * 1e3
                point[f'{prefix}p99 ms'] = statistics.median(used['flush_p99'] for used in all_of) * 1e3
                point[f'{prefix}longest ms'] = max(used['flush_worst'] for used in all_of) * 1e3
                point[f'{prefix}flushes'] = sum(used['flushes'] for used in all_of)
            series.points.append(point)
        out.append(series)
    return out


def tails(env, engine, allocating, writers):
    path, count = env.path('steady.qcow2'), power_of_two(16384 // env.scale)
    span = count * 64 * KIB
    with Driver(env) as driver:
        driver(f'create {engine} {path} {span}')
        driver(f'open d {engine} {path} rw')
        where = f'order=perm stride=64k span={span}'
        if not allocating:
            where = f'order=random span={span // 8}'
            driver(f'run d op=write order=seq bs=1M span={span // 8} final=1')
        pace = 1000000 * writers // WRITES_PER_SECOND
        used = driver(f'run d op=write bs=4k {where} count={count} threads={writers} flusher=1 pace={pace}')
        driver('close d')
    env.remove('steady.qcow2')
    return used


SERIES = (unflushed, sequential, copy_on_write, random_clusters, whole_images, warm_reads, cluster_sizes, closes,
          first_open, findings, flush_tails)
