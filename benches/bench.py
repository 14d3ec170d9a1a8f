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
from workloads import compressed, encrypted, flushes, growth, reads, steady, whole  # noqa: E402

MODULES = (reads, flushes, compressed, encrypted, whole)
BY_VARIANT = (flushes.TABLE,)
GROWTH = {function.__name__: function for function in (*growth.SERIES, *steady.SERIES)}


def arguments():
    parser = argparse.ArgumentParser(description='Benchmarks of the library against a raw file and its peers.')
    parser.add_argument('--only', action='append', default=[], metavar='WORKLOAD',
                        help='run this one only; may be given several times')
    parser.add_argument('--list', action='store_true', help='name the workloads')
    parser.add_argument('--quick', action='store_true', help='a quarter of the work and three rounds')
    parser.add_argument('--tiny', action='store_true', help='a sixty-fourth and one round: whether everything runs')
    parser.add_argument('--json', metavar='FILE', help='write everything that was measured')
    parser.add_argument('--chart', metavar='FILE.svg', help='draw the ratios')
    parser.add_argument('--growth', action='store_true',
                        help='measure what cost grows with, in place of the workloads; --chart draws that')
    parser.add_argument('--document', metavar='FILE.md',
                        help='measure both, put the tables into a document and draw both charts beside it')
    parser.add_argument('--tables', metavar='FILE', help='print the tables of an earlier --json, measure nothing')
    parser.add_argument('--into', metavar='FILE.md', help='put the tables between the marks of a document')
    parser.add_argument('--dir', default='/var/tmp', help='a directory on a disk; needs 10 GB (default: /var/tmp)')
    parser.add_argument('--tmpfs', default='/dev/shm', help='a directory in memory (default: /dev/shm)')
    parser.add_argument('--build', default='build-bench', help=argparse.SUPPRESS)
    parser.add_argument('--peers', help=argparse.SUPPRESS)
    return parser.parse_args()


def workloads(options):
    if options.growth:
        return GROWTH
    return {name: function for module in MODULES for name, function in module.WORKLOADS.items()}


def chosen_workloads(options):
    every = workloads(options)
    for name in options.only:
        if name not in every:
            sys.exit(f'{name}: no such workload; see --list')
    return {name: every[name] for name in every if not options.only or name in options.only}


def add_series(env, function, series):
    made = function(env)
    series += made if isinstance(made, list) else [made]


def measure_rows(env, chosen, rows, is_growth):
    for name, function in chosen.items():
        start, before = time.monotonic(), len(rows)
        print(f'{name} ...', end='', flush=True, file=sys.stderr)
        try:
            add_series(env, function, rows) if is_growth else function(env, rows)
        except RuntimeError as error:
            env.note(f'{name} FAILED: {error}')
        if is_growth:
            missed = sum(len(report.grown(series.record())) for series in rows[before:])
        else:
            missed = sum(not one['pass'] for row in rows[before:] for one in row.reaches)
        print(f' {time.monotonic() - start:.0f} s{f", {missed} missed" if missed else ""}', file=sys.stderr)


def measure(options):
    chosen = chosen_workloads(options)
    notes, rows = [], []
    directory = tempfile.mkdtemp(prefix='qcow2-bench-', dir=options.dir)
    tmpfs = tempfile.mkdtemp(prefix='qcow2-bench-', dir=options.tmpfs)
    env = harness.Environment(options.build, options.peers, directory, tmpfs, options.quick, options.tiny)
    env.note = notes.append
    harness.allow_locking()
    try:
        measure_rows(env, chosen, rows, options.growth)
    except (KeyboardInterrupt, SystemExit):
        notes.append('interrupted: the workloads that were not complete are missing')
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(tmpfs, ignore_errors=True)
    return {'growth' if options.growth else 'rows': [row.record() for row in rows], 'notes': notes}


def put_into(path, mark, text):
    """Replaces what is between `<!-- MARK -->` and `<!-- end of MARK -->`."""
    with open(path, encoding='utf-8') as source:
        before, _, rest = source.read().partition(f'<!-- {mark} -->\n')
    _, found, after = rest.partition(f'<!-- end of {mark} -->')
    if not found:
        sys.exit(f'{path}: has no marks for {mark}')
    with open(path, 'w', encoding='utf-8') as out:
        out.write(f'{before}<!-- {mark} -->\n\n{text}\n{found}{after}')


def tell(options, result):
    """Prints, and writes to where the options say; whether something failed."""
    is_growth = 'growth' in result
    made = result['growth' if is_growth else 'rows']
    text = report.growth_tables(made) if is_growth else report.tables(made, BY_VARIANT)
    print(text)
    print(report.growth_summary(made) if is_growth else report.summary(made))
    print('\n'.join(f'note: {note}' for note in result['notes']))
    if options.into:
        put_into(options.into, 'growth' if is_growth else 'tables', text)
    if options.json:
        with open(options.json, 'w', encoding='utf-8') as out:
            json.dump(result, out, indent=1)
    if options.chart:
        (report.growth_chart if is_growth else report.bars)(made, options.chart)
    return any('FAILED' in note for note in result['notes'])


def document(options):
    """Everything that a document of the project shows: the rows, what cost grows with, and their charts."""
    directory, stem = os.path.split(os.path.splitext(options.document)[0])
    failed, only = False, options.only
    for is_growth, chart in ((False, f'{stem}.svg'), (True, 'growth.svg')):
        options.growth, options.json = is_growth, None
        options.only = [name for name in only if name in workloads(options)]
        if only and not options.only:
            continue
        options.into, options.chart = options.document, os.path.join(directory, chart)
        result = measure(options)
        if any('interrupted' in note for note in result['notes']):
            sys.exit(f'interrupted: {options.document} is as it was')
        failed |= tell(options, result)
    return failed


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was made is removed
    options = arguments()
    if options.list:
        print('\n'.join(f'{name:18}{function.__doc__ or ""}' for name, function in workloads(options).items()))
        return
    if options.document:
        failed = document(options)
    elif options.tables:
        with open(options.tables, encoding='utf-8') as source:
            failed = tell(options, json.load(source))
    else:
        failed = tell(options, measure(options))
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
