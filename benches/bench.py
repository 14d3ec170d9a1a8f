#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Runs the workloads and prints the tables. benches/run builds everything and calls this."""
import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import harness  # noqa: E402
import report  # noqa: E402
from workloads import compressed, flushes, growth, reads, whole  # noqa: E402

MODULES = (reads, flushes, compressed, whole)
BY_VARIANT = (flushes.TABLE,)


def arguments():
    parser = argparse.ArgumentParser(description='Benchmarks of the library against a raw file and its peers.')
    parser.add_argument('--only', action='append', default=[], metavar='WORKLOAD',
                        help='run this one only; may be given several times')
    parser.add_argument('--list', action='store_true', help='name the workloads')
    parser.add_argument('--quick', action='store_true', help='a quarter of the work and three rounds')
    parser.add_argument('--json', metavar='FILE', help='write everything that was measured')
    parser.add_argument('--chart', metavar='FILE.svg', help='draw the ratios')
    parser.add_argument('--growth', action='store_true',
                        help='measure what cost grows with, in place of the workloads; --chart draws that')
    parser.add_argument('--tables', metavar='FILE', help='print the tables of an earlier --json, measure nothing')
    parser.add_argument('--into', metavar='FILE.md', help='put the tables between the marks of a document')
    parser.add_argument('--dir', default='/var/tmp', help='a directory on a disk; needs 10 GB (default: /var/tmp)')
    parser.add_argument('--tmpfs', default='/dev/shm', help='a directory in memory (default: /dev/shm)')
    parser.add_argument('--build', default='build-bench', help=argparse.SUPPRESS)
    parser.add_argument('--peers', help=argparse.SUPPRESS)
    return parser.parse_args()


def workloads():
    return {name: function for module in MODULES for name, function in module.WORKLOADS.items()}


def chosen_workloads(options):
    every = workloads()
    for name in options.only:
        if name not in every:
            sys.exit(f'{name}: no such workload; see --list')
    return {name: every[name] for name in every if not options.only or name in options.only}


def measure_rows(env, chosen, rows):
    for name, function in chosen.items():
        start, before = time.monotonic(), len(rows)
        print(f'{name} ...', end='', flush=True, file=sys.stderr)
        try:
            function(env, rows)
        except RuntimeError as error:
            env.note(f'{name} FAILED: {error}')
        missed = sum(not one['pass'] for row in rows[before:] for one in row.reaches)
        print(f' {time.monotonic() - start:.0f} s{f", {missed} missed" if missed else ""}', file=sys.stderr)


def measure(options):
    chosen = chosen_workloads(options)
    notes, rows, result = [], [], {}
    directory = tempfile.mkdtemp(prefix='qcow2-bench-', dir=options.dir)
    tmpfs = tempfile.mkdtemp(prefix='qcow2-bench-', dir=options.tmpfs)
    env = harness.Environment(options.build, options.peers, directory, tmpfs, options.quick)
    env.note = notes.append
    harness.allow_locking()
    try:
        if options.growth:
            result['growth'] = growth.measure(env, lambda name: print(name, file=sys.stderr))
        else:
            measure_rows(env, chosen, rows)
    except (KeyboardInterrupt, SystemExit):
        if options.growth:
            raise
        notes.append('interrupted: the workloads that were not complete are missing')
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(tmpfs, ignore_errors=True)
    if not options.growth:
        result['rows'] = [row.record() for row in rows]
    return {**result, 'notes': notes}


def put_into(path, mark, text):
    """Replaces what is between `<!-- MARK -->` and `<!-- end of MARK -->`."""
    with open(path, encoding='utf-8') as source:
        before, _, rest = source.read().partition(f'<!-- {mark} -->\n')
    _, found, after = rest.partition(f'<!-- end of {mark} -->')
    if not found:
        sys.exit(f'{path}: has no marks for {mark}')
    with open(path, 'w', encoding='utf-8') as out:
        out.write(f'{before}<!-- {mark} -->\n\n{text}\n{found}{after}')


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was made is removed
    options = arguments()
    if options.list:
        print('\n'.join(f'{name:14}{function.__doc__ or ""}' for name, function in workloads().items()))
        return
    if options.tables:
        with open(options.tables, encoding='utf-8') as source:
            result = json.load(source)
    else:
        result = measure(options)
    text = report.growth_tables(result['growth']) if 'growth' in result else report.tables(result['rows'], BY_VARIANT)
    print(text)
    if 'rows' in result:
        print(report.summary(result['rows']))
    print('\n'.join(f'note: {note}' for note in result['notes']))
    if options.into:
        put_into(options.into, 'growth' if 'growth' in result else 'tables', text)
    if options.json:
        with open(options.json, 'w', encoding='utf-8') as out:
            json.dump(result, out, indent=1)
    if options.chart:
        (report.growth_chart if 'growth' in result else report.bars)(
            result['growth' if 'growth' in result else 'rows'], options.chart)
    if any('FAILED' in note for note in result['notes']):
        sys.exit(1)


if __name__ == '__main__':
    main()
