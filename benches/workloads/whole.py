# SPDX-License-Identifier: MIT OR Apache-2.0
"""Work on whole images: open, check, repair, snapshots, create, convert. Times of tools have the start of the process in them."""
import array
import os
import struct

from harness import Driver, Row, command

TABLE = 'Whole-image work'
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
ADDRESS = 0x00fffffffffffe00


def tool_row(env, name, title, arguments, limit, before, others=None):
    """The same command of both tools, and `others`. `before(variant)` makes what it works on and gives the path."""
    def run(variant, tool):
        def sample(_):
            if tool is None:
                env.need('qemu')
            path = before(variant)
            return command(env, [tool, *(part.format(path=path) for part in arguments)])
        return sample
    row = Row(env, TABLE, name, title, base='QEMU', metric='wall')
    row.run({'QEMU': run('QEMU', env.qemu), 'ours': run('ours', env.img), **(others or {})}, warmup=False)
    row.reach('ours', limit)
    row.note_memory('QEMU')
    return row


def create_mapped(env, name, size, snapshots=0, bitmaps=0):
    path = env.path(name)
    with Driver(env) as driver:
        driver(f'create qcow2 {path} {size} preallocation=metadata')
        driver(f'open disk qcow2 {path} rw')
        used = driver(f'snapshots disk {snapshots}')
        if bitmaps:
            driver(f'bitmaps disk {bitmaps} 64k')
            # Each cluster of its bits has one that is set.
            driver(f'run disk op=write order=stride stride={32 * GIB} bs=64k span={size}')
        driver('close disk')
    return path, used


def opens(env, rows):
    """Open and close, many times in one process."""
    for name, title, size, snapshots, bitmaps, count, limit in (
            ('open-1t', 'open, 1 TiB with all metadata', TIB, 0, 0, 100, 100),
            ('open-bitmap', 'open, 1 TiB, a dirty bitmap of 64 KiB granules', TIB, 0, 1, 100, 1000),
            ('open-snapshots', 'open, 1000 snapshots', 64 * MIB, 1000, 0, 50, 5000)):
        path, _ = create_mapped(env, 'open.qcow2', size, snapshots, bitmaps)
        variants = {}
        for variant, engine in (('ours', 'qcow2'), ('imago', 'imago'), ('qcow2-rs', 'qcow2rs')):
            # Who may not write needs no bitmaps.
            def sample(_, engine=engine, how='rw' if bitmaps else ''):
                env.need(engine)
                with Driver(env) as driver:
                    driver(f'opens {engine} {path} 2 {how}')
                    return driver(f'opens {engine} {path} {count} {how}')
            variants[variant] = sample
        row = Row(env, TABLE, name, title, base='imago').run(variants)
        row.reach('ours', limit, row.time('ours') * 1e6, what='microseconds')
        rows.append(row)
    env.remove('open.qcow2')


def checks(env, rows):
    for name, title, size, snapshots, limit in (
            ('check-1t', 'check, 1 TiB with all metadata', TIB, 0, 0.1),
            ('check-snapshots', 'check, 64 GiB mapped, 1000 snapshots', 64 * GIB, 1000 // env.scale, 0.02)):
        path, _ = create_mapped(env, 'check.qcow2', size, snapshots)
        rows.append(tool_row(env, name, title, ['check', '-q', '{path}'], limit, before=lambda _: path))
        env.remove('check.qcow2')


def snapshots(env, rows):
    """QEMU's cost of each is the same from the first to the last, so that a few of them do; time per snapshot."""
    few, many = 5, 1000 // env.scale

    def by_qemu(_):
        env.need('qemu')
        path, _ = create_mapped(env, 'snap.qcow2', 64 * GIB)
        used = [command(env, [env.qemu, 'snapshot', '-c', f's{i}', path]) for i in range(few)]
        return {key: sum(one[key] for one in used) for key in ('wall', 'user', 'system', 'ops')}
    row = Row(env, TABLE, 'snapshots', '1000 snapshots of a 64 GiB mapped image (each)', base='QEMU', metric='wall')
    row.run({'QEMU': by_qemu, 'ours': lambda _: create_mapped(env, 'snap.qcow2', 64 * GIB, many)[1]}, rounds=3,
            warmup=False)
    row.reach('ours', 0.05)
    rows.append(row)
    env.remove('snap.qcow2')


def make_stale(path, dirty=True):
    """Takes every data cluster's refcount away and says dirty, as the death of a lazy writer leaves it; how many."""
    with open(path, 'r+b') as image:
        header = image.read(104)
        cluster = 1 << struct.unpack_from('>I', header, 20)[0]
        l1_size, l1_offset, table_offset, table_clusters = struct.unpack_from('>IQQI', header, 36)
        data = set()
        for table in entries(image, l1_offset, l1_size):
            if table & ADDRESS:
                data.update((entry & ADDRESS) // cluster for entry in entries(image, table & ADDRESS, cluster // 8))
        data.discard(0)
        for index, block in enumerate(entries(image, table_offset, table_clusters * cluster // 8)):
            if block == 0:
                continue
            image.seek(block)
            counts = array.array('H', image.read(cluster))
            first = index * len(counts)
            for i in range(len(counts)):
                if first + i in data:
                    counts[i] = 0
            image.seek(block)
            image.write(counts.tobytes())
        if dirty:
            image.seek(72)
            image.write(struct.pack('>QQ', 1, 1))
    return len(data)


def entries(image, offset, count):
    image.seek(offset)
    return struct.unpack(f'>{count}Q', image.read(count * 8))


def repairs(env, rows):
    """1,048,576 clusters whose refcounts were never written: repair at open, and by the tools."""
    path, _ = create_mapped(env, 'stale.qcow2', 64 * GIB // env.scale)
    stale = make_stale(path)
    if stale != MIB // env.scale:
        raise RuntimeError(f'{stale} stale refcounts')

    def fresh(_=None):
        command(env, ['cp', path, env.path('repair.qcow2')])
        command(env, ['sync', env.path('repair.qcow2')])  # a repair does not pay for the copy
        return env.path('repair.qcow2')

    def by_open(_):
        with Driver(env) as driver:
            used = driver(f'opens qcow2 {fresh()} 1 rw')
            return used
    repair = ['check', '-q', '-r', 'all', '{path}']
    said = env.path('repair.txt')
    with open(said, 'w', encoding='utf-8') as text:
        text.write(command(env, [env.img, *repair[:-1], fresh()])['out'])
    # The line for each cluster, and no repair.
    row = tool_row(env, 'repair', 'repair of 1,048,576 stale refcounts, check -r all', repair, 0.03, before=fresh,
                   others={'floor': lambda _: command(env, ['cat', said])})
    opened = Row(env, TABLE, 'repair-open', 'the same by a writable open', base='QEMU', metric='wall')
    opened.samples = {'QEMU': row.samples.get('QEMU', [])} if 'QEMU' in row.samples else {}
    opened.run({'ours': by_open}, warmup=False)
    opened.reach('ours', 0.03)
    opened.reach('ours', 30, opened.time('ours') * 1e3 * env.scale, what='milliseconds')
    rows += [row, opened]
    env.remove('stale.qcow2', 'repair.qcow2', 'repair.txt')


def creates(env, rows):
    def before(_):
        env.remove('create.qcow2')
        return env.path('create.qcow2')
    def floor(_):
        """As many writes of as many bytes to a raw file, and a sync."""
        path, tables = before(None), TIB // 65536 * (8 + 2)
        with Driver(env) as driver:
            driver(f'create raw {path} {tables}')
            driver(f'open disk raw {path} rw')
            used = driver(f'run disk op=write order=seq bs=64k span={tables} final=1')
            driver('close disk')
        return dict(used, ops=1)
    rows.append(tool_row(env, 'create', 'create, 1 TiB, preallocation=metadata',
                         ['create', '-q', '-f', 'qcow2', '-o', 'preallocation=metadata', '{path}', '1T'], 0.06,
                         before=before, others={'floor': floor}))
    env.remove('create.qcow2')


def converts(env, rows):
    size = 10 * GIB // env.scale
    source, target = env.path('from.qcow2'), env.path('to.qcow2')
    with Driver(env) as driver:
        driver(f'create qcow2 {source} {size}')
        driver(f'open disk qcow2 {source} rw')
        driver(f'run disk op=write order=stride stride={10 * MIB} bs=1M span={size}')
        driver('close disk')
    command(env, ['cp', source, target])

    def run(*arguments):
        def sample(_):
            if arguments[0] is None:
                env.need('qemu')
            env.remove('to.qcow2')
            return command(env, [*arguments, source, target])
        return sample
    plain = ['convert', '-f', 'qcow2', '-O', 'qcow2']
    row = Row(env, TABLE, 'convert', 'convert, 1 GiB of data in 10 GiB, qcow2 to qcow2', base='cp', metric='wall')
    row.run({'cp': run('cp'), 'ours': run(env.img, *plain), 'QEMU': run(env.qemu, *plain),
             'QEMU -m 8 -W': run(env.qemu, *plain, '-m', '8', '-W')}, warmup=False)
    row.reach('ours', 1.1)
    row.note_memory('QEMU')
    rows.append(row)
    env.remove(*(os.path.basename(path) for path in (source, target)))


WORKLOADS = {'open': opens, 'check': checks, 'snapshots': snapshots, 'repair': repairs, 'create': creates,
             'convert': converts}
