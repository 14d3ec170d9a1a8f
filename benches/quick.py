#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Fails on gross regressions: system calls and instructions are counted, seconds are not."""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import harness  # noqa: E402

# Most that one operation may cost. A change that costs less lowers its number here, to what is measured and a
# twentieth for instructions, which depend on the compiler; calls are exact, with a share of what an open costs.
CALLS = {
    # case: reads, writes, bytes written, syncs, other calls
    'read 4 KiB': (1, 0, 0, 0, 0),
    'read 1 MiB': (1, 0, 0, 0, 0),
    'read 4 KiB below 16 overlays': (1, 0, 0, 0, 0),
    'read 4 KiB, compressed, in order': (0.07, 0, 0, 0, 0),
    'overwrite 4 KiB': (0, 1, 4096, 0, 0),
    'allocate 1 MiB': (0.1, 1.1, 1050000, 0.1, 0.2),
    'allocate 4 KiB and flush, lazy': (0.1, 2.05, 8300, 1.05, 0.1),
    'allocate 4 KiB and flush, eager': (0.1, 2.05, 8800, 1.05, 0.1),
    'allocate 4 KiB, writethrough, lazy': (0.1, 2.05, 8300, 1.05, 0.1),
    'allocate 4 KiB, writethrough, eager': (0.1, 2.05, 8800, 1.05, 0.1),
    'allocate 4 KiB, one flush': (0.1, 1.1, 4300, 0.1, 0.1),
    'open, 1 TiB mapped': (5, 0, 0, 0, 1),
    'overwrite 4 KiB, four bitmaps': (0, 1, 4096, 0, 0),
    # 12 reads and the syncs are a writable open's and its close's.
    'open, 1 TiB, a bitmap': (15, 0, 0, 2, 1),
}
INSTRUCTIONS = {
    # case: the function whose calls are counted, instructions of one operation with all that it calls
    'read 4 KiB': ('qcow2_pread', 277),
    'read 1 MiB': ('qcow2_pread', 3527),
    'read 4 KiB below 16 overlays': ('qcow2_pread', 424),
    'overwrite 4 KiB': ('qcow2_pwrite', 341),
    'allocate 1 MiB': ('qcow2_pwrite', 26750),
    'allocate 4 KiB, one flush': ('qcow2_pwrite', 3520),
    'allocate 4 KiB and flush, eager': ('qcow2_flush', 2980),
    'open, 1 TiB mapped': ('qcow2_open', 272200),
    'overwrite 4 KiB, four bitmaps': ('qcow2_pwrite', 427),
    'open, 1 TiB, a bitmap': ('qcow2_open', 1401700),
    'next dirty, for 8 bytes of bits': ('qcow2_bitmap_next_dirty', 3.8),
    'check, for a cluster': ('qcow2_check', 21.1),
    'take a snapshot, for a cluster': ('qcow2_snapshot_create', 82.3),
}
MAPPED = 64 << 30
# What is said of 1 of so many, where nothing says how many operations there are.
PARTS = {'next dirty, for 8 bytes of bits': MAPPED // 512 // 64}
FRESH = '{create} {options};open d qcow2 {p}/fresh.qcow2 rw {open};{run};close d'


def alloc(run, create='', options=''):
    return FRESH.format(create='create qcow2 {p}/fresh.qcow2 1G', options=create, open=options, run=run, p='{p}')


# Commands of the driver; the `run` with {n} operations is what counts.
CASES = {
    'read 4 KiB': 'open d qcow2 {p}/full.qcow2;run d bs=4k span=32M count=64;run d bs=4k span=32M count={n}',
    'read 1 MiB': 'open d qcow2 {p}/full.qcow2;run d bs=1M order=seq span=32M;run d bs=1M order=seq span=32M count={n}',
    'read 4 KiB below 16 overlays':
        'open d qcow2 {p}/chain-16.qcow2;run d bs=64k order=seq span=8M;run d bs=4k span=8M count={n}',
    'read 4 KiB, compressed, in order':
        'open d qcow2 {p}/zlib.qcow2;run d bs=4k order=seq span=8M count=16;run d bs=4k order=seq span=8M count={n}',
    'overwrite 4 KiB':
        'open d qcow2 {p}/full.qcow2 rw;run d op=write bs=4k span=32M count=64;run d op=write bs=4k span=32M count={n}',
    'allocate 1 MiB': alloc('run d op=write order=seq bs=1M span=1G count={n}'),
    'allocate 4 KiB and flush, lazy': alloc('run d op=write order=stride flush=1 span=1G count={n}',
                                            'lazy_refcounts=on'),
    'allocate 4 KiB and flush, eager': alloc('run d op=write order=stride flush=1 span=1G count={n}'),
    'allocate 4 KiB, writethrough, lazy': alloc('run d op=write order=stride span=1G count={n}',
                                                'lazy_refcounts=on', 'cache=writethrough'),
    'allocate 4 KiB, writethrough, eager': alloc('run d op=write order=stride span=1G count={n}', '',
                                                 'cache=writethrough'),
    'allocate 4 KiB, one flush': alloc('run d op=write order=stride final=1 span=1G count={n}'),
    'open, 1 TiB mapped': 'opens qcow2 {p}/mapped.qcow2 {n}',
    'take a snapshot, for a cluster': 'open d qcow2 {p}/checked.qcow2 rw;snapshots d 1',
    'overwrite 4 KiB, four bitmaps':
        'open d qcow2 {p}/tracked.qcow2 rw;run d op=write order=seq bs=64k span=32M;run d op=write bs=4k span=32M count=64;run d op=write bs=4k span=32M count={n}',
    'open, 1 TiB, a bitmap': 'opens qcow2 {p}/bitmap.qcow2 {n} rw',
    # One dirty granule in each cluster of bits: all of them are words in memory.
    'next dirty, for 8 bytes of bits':
        f'create qcow2 {{p}}/scanned.qcow2 {MAPPED};open d qcow2 {{p}}/scanned.qcow2 rw;bitmaps d 1 512;'
        f'run d op=write order=stride stride=256M bs=4k span={MAPPED};dirty d b0 512;close d',
    'check, for a cluster': 'open d qcow2 {p}/checked.qcow2;check d',
}
COUNTS = {'read 1 MiB': 64, 'allocate 1 MiB': 256, 'open, 1 TiB mapped': 16, 'open, 1 TiB, a bitmap': 16,
          'overwrite 4 KiB, four bitmaps': 8192}


def prepare(env, path):
    with harness.Driver(env) as driver:
        driver(f'create qcow2 {path}/full.qcow2 32M')
        driver(f'open d qcow2 {path}/full.qcow2 rw')
        driver('run d op=write order=seq bs=1M span=32M')
        driver('close d')
        for layer in range(17):
            backing = f'backing_file={path}/chain-{layer - 1}.qcow2 backing_fmt=qcow2' if layer else ''
            driver(f'create qcow2 {path}/chain-{layer}.qcow2 8M {backing}')
            driver(f'open d qcow2 {path}/chain-{layer}.qcow2 rw')
            driver(f'run d op=write order=share bs=64k span=8M part={layer} parts=17')
            driver('close d')
        driver(f'create raw {path}/text.raw 8M')
        driver(f'open d raw {path}/text.raw rw')
        driver('run d op=write order=seq bs=64k span=8M data=text')
        driver('close d')
        driver(f'create qcow2 {path}/mapped.qcow2 1T preallocation=metadata')
        driver(f'create qcow2 {path}/bitmap.qcow2 1T preallocation=metadata')
        driver(f'open d qcow2 {path}/bitmap.qcow2 rw')
        driver('bitmaps d 1 64k')
        driver('run d op=write order=stride stride=8G bs=64k span=1T')
        driver('close d')
        driver(f'create qcow2 {path}/tracked.qcow2 32M')
        driver(f'open d qcow2 {path}/tracked.qcow2 rw')
        driver('run d op=write order=seq bs=1M span=32M')
        driver('bitmaps d 4 64k')
        driver('close d')
        driver(f'create qcow2 {path}/checked.qcow2 {MAPPED} preallocation=metadata')
    harness.command(env, [env.img, 'convert', '-c', '-f', 'raw', '-O', 'qcow2', f'{path}/text.raw', f'{path}/zlib.qcow2'])


def lines(name, path, count):
    return '\n'.join(CASES[name].format(p=path, n=count).split(';')) + '\n'


def driver_json(output, name):
    """The answer to the measured command: the last one before `close`, if there is one."""
    answers = [line for line in output.splitlines() if '"wall"' in line]
    return harness.json.loads(answers[-2 if CASES[name].endswith('close d') else -1])


def count_calls(env, path, faults):
    for name, limits in CALLS.items():
        count = COUNTS.get(name, 1024)
        done = subprocess.run([env.driver], input=lines(name, path, count), text=True, capture_output=True,
                              env=dict(os.environ, LD_PRELOAD=env.counter), check=True)
        used = driver_json(done.stdout, name)
        if used['ops'] != count:
            sys.exit(f'{name}: {used["ops"]} operations and not {count}: nothing was tested')
        keys = ('reads', 'writes', 'written_bytes', 'syncs', 'others')
        print(f'{name}: ' + ', '.join(f'{used[key] / count:.2f} {key}' for key in keys))
        for key, limit in zip(keys, limits):
            if used[key] > limit * count + 0.5:
                faults.append(f'{name}: {used[key] / count:.3f} {key} for an operation, at most {limit}')
        if not name.startswith('open') and used['reads'] + used['writes'] == 0:
            faults.append(f'{name}: the counter saw nothing')


def confirm(env, path, faults):
    """The preloaded counter sees what strace sees."""
    name = 'allocate 4 KiB and flush, eager'
    try:
        seen = harness.trace(env, [env.driver], lines(name, path, 256))
    except harness.Absent as reason:
        print(f'strace: skipped, {reason}')
        return
    done = subprocess.run([env.driver], input=lines(name, path, 256), text=True, capture_output=True,
                          env=dict(os.environ, LD_PRELOAD=env.counter), check=True)
    used = driver_json(done.stdout, name)
    for key in ('reads', 'read_bytes', 'writes', 'written_bytes', 'syncs'):
        if used[key] != seen[key]:
            faults.append(f'{name}: {key}: the counter has {used[key]}, strace {seen[key]}')
    print(f'strace sees the same {seen["writes"]} writes, {seen["written_bytes"]} bytes and {seen["syncs"]} syncs')


def instructions(env, path, name, function, count):
    done = subprocess.run(['valgrind', '--tool=callgrind', f'--callgrind-out-file={path}/callgrind.out',
                           f'--toggle-collect={function}', env.driver], input=lines(name, path, count), text=True,
                          capture_output=True, check=True)
    return int(re.search(r'Collected : (\d+)', done.stderr).group(1))


def count_instructions(env, path, faults):
    if not shutil.which('valgrind'):
        print('instructions: skipped, valgrind is missing')
        return
    for name, (function, limit) in INSTRUCTIONS.items():
        if '{n}' in CASES[name]:
            # What comes before the operations is in both runs.
            few, many = COUNTS.get(name, 1024) // 4, COUNTS.get(name, 1024)
            used = instructions(env, path, name, function, many) - instructions(env, path, name, function, few)
            used /= many - few
        else:
            used = instructions(env, path, name, function, 0) / PARTS.get(name, MAPPED >> 16)
        print(f'{name}: {used:.1f} instructions in {function}')
        if used > limit:
            faults.append(f'{name}: {used:.1f} instructions for an operation, at most {limit}')
        if used < 1:
            faults.append(f'{name}: no instruction was counted')


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--build', required=True, help='the build directory of meson')
    options = parser.parse_args()
    place = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    path = tempfile.mkdtemp(prefix='qcow2-quick-', dir=place)
    env = harness.Environment(options.build, None, path, path)
    os.environ.pop('MALLOC_PERTURB_', None)  # meson's; filling what is freed is work, too
    faults = []
    try:
        prepare(env, path)
        count_calls(env, path, faults)
        confirm(env, path, faults)
        count_instructions(env, path, faults)
    finally:
        shutil.rmtree(path, ignore_errors=True)
    print('\n'.join(faults) or 'all within their limits')
    sys.exit(1 if faults else 0)


if __name__ == '__main__':
    main()
