# SPDX-License-Identifier: MIT OR Apache-2.0
"""What every workload of the benchmark needs: processes to measure, rounds that alternate, ratios."""
import json
import os
import re
import resource
import shutil
import statistics
import subprocess

CALLS = ('pread64,pwrite64,preadv,pwritev,preadv2,pwritev2,fdatasync,fsync,fallocate,ftruncate,'
         'io_submit,io_uring_enter')


class Absent(Exception):
    """A peer that this machine does not have; the column says so."""


class Driver:
    """One bench-driver process: commands in, one line of JSON out."""

    def __init__(self, env, counted=False, prefix=()):
        variables = dict(os.environ, BENCH_PEERS=env.peers or '')
        if counted:
            variables['LD_PRELOAD'] = env.counter
        self.process = subprocess.Popen([*prefix, env.driver], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, env=variables)

    def __call__(self, command):
        try:
            self.process.stdin.write(command + '\n')
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f'{command}: {self.process.stderr.read().strip()[-300:]}')
        return json.loads(line)

    def end(self):
        self.process.stdin.close()
        self.process.stdout.read()
        self.process.stderr.read()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


class Environment:
    """Programs, directories, sizes."""

    def __init__(self, build, peers, directory, tmpfs, quick=False, tiny=False):
        self.driver = os.path.join(build, 'benches', 'bench-driver')
        self.counter = os.path.join(build, 'benches', 'bench-count.so')
        self.img = os.path.join(build, 'tools', 'qcow2-img')
        self.peers = peers if peers and os.path.exists(peers) else None
        self.qemu = shutil.which('qemu-img')
        self.strace = shutil.which('strace')
        self.directory, self.tmpfs = directory, tmpfs
        self.rounds = 1 if tiny else 3 if quick else 5
        self.scale = 64 if tiny else 4 if quick else 1
        self.startup = {}

    def path(self, name, tmpfs=False):
        return os.path.join(self.tmpfs if tmpfs else self.directory, name)

    def need(self, engine):
        """Says that an engine takes part, or that it is absent."""
        if engine in ('imago', 'qcow2rs') and not self.peers:
            raise Absent(engine)
        if engine == 'qemu' and not self.qemu:
            raise Absent(engine)

    def remove(self, *names):
        for name in names:
            for tmpfs in (False, True):
                try:
                    os.unlink(self.path(name, tmpfs))
                except FileNotFoundError:
                    pass


def command(env, arguments):
    """Runs a program; seconds of wall and CPU time, peak memory in bytes, and what it printed."""
    done = subprocess.run([env.driver, 'spawn', *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False)
    out, _, usage = done.stdout.rstrip().rpartition('\n')
    if done.returncode != 0:
        raise RuntimeError(f'{" ".join(arguments)}: {out.strip()[-300:]}')
    return {**json.loads(usage), 'out': out}


def counted_command(env, arguments):
    """A program: what it took, and in a second run what it asked of the host."""
    used = command(env, arguments)
    out = command(env, ['env', f'LD_PRELOAD={env.counter}', 'BENCH_COUNT_EXIT=1', *arguments])['out']
    return {**used, **json.loads(out.splitlines()[-1])}


def scattered(size, block):
    """A step with which qemu-img bench, which knows no chance, goes all over a disk; it takes less than 2 GiB."""
    return (int(min(size, 2 << 30) // block * 0.6180339887) | 1) * block


def qemu_bench(env, path, count, block=4096, step=None, depth=1, cache='writeback', extra=(), form='qcow2'):
    """qemu-img bench. The wall time is its own; what a process with one request takes is subtracted from the
    CPU time."""
    env.need('qemu')

    def run(requests):
        step_arguments = [] if step is None else ['-S', str(step)]
        format_arguments = [] if form is None else ['-f', form]
        return command(env, [env.qemu, 'bench', *format_arguments, '-t', cache, '-c', str(requests), '-d', str(depth),
                        '-s', str(block), *step_arguments, *extra, path])
    # Deriving a key takes its time.
    start = 'bench' if form else path
    if start not in env.startup:
        env.startup[start] = statistics.median(used['user'] + used['system'] for used in (run(1) for _ in range(5)))
    sample = run(count)
    sample['wall'] = float(re.search(r'completed in ([0-9.]+) seconds', sample['out']).group(1))
    sample['user'] = max(sample['user'] + sample['system'] - env.startup[start], 1e-9)
    sample['system'], sample['ops'] = 0.0, count
    return sample


def cpu(sample):
    return (sample['user'] + sample['system']) / sample['ops']


def wall(sample):
    return sample['wall'] / sample['ops']


METRICS = {'wall': wall, 'cpu': cpu}


class Row:
    """One line of a table: what each variant took, as a ratio to the base, in rounds that alternate."""

    def __init__(self, env, table, name, title, base='raw', metric='cpu'):
        self.env, self.table, self.name, self.title = env, table, name, title
        self.base, self.metric = base, metric
        self.samples, self.missing, self.values, self.reaches = {}, {}, {}, []

    def run(self, variants, rounds=None, warmup=True):
        """`variants`: {name: function(round) -> sample}. A peer that fails keeps its column, with the reason."""
        names = list(variants)
        for number in range(-1 if warmup else 0, rounds or self.env.rounds):
            # Each round begins with another one, so that none always comes after the same neighbour.
            first = max(number, 0) % len(names)
            for name in names[first:] + names[:first]:
                function = variants[name]
                if name in self.missing:
                    continue
                try:
                    sample = function(max(number, 0))
                except Absent:
                    self.missing[name] = 'absent'
                except RuntimeError as error:
                    if name == self.base and name != 'QEMU':
                        raise
                    self.missing[name] = 'fails'
                    self.env.note(f'{self.name}, {name}: {error}')
                else:
                    if number >= 0:
                        self.samples.setdefault(name, []).append(sample)
        return self

    def ratio(self, name, metric=None, base=None):
        """The median of the rounds' ratios."""
        base = base or self.base
        if name not in self.samples or base not in self.samples:
            return None
        value = METRICS[metric or self.metric]
        pairs = zip(self.samples[name], self.samples[base])
        return statistics.median(value(a) / max(value(b), 1e-12) for a, b in pairs)

    def time(self, name, metric=None):
        """Seconds per operation."""
        value = METRICS[metric or self.metric]
        return statistics.median(value(s) for s in self.samples[name])

    def reach(self, name, limit, value=None, metric=None, base=None, what=None):
        """One cell that must be reached: a ratio unless a value is given."""
        if value is None:
            value = self.ratio(name, metric, base)
        if value is None and name not in self.missing:
            return
        self.reaches.append({'variant': name, 'limit': limit, 'value': value,
                             'what': what or f'{metric or self.metric} over {base or self.base}',
                             'pass': value is not None and value <= limit})

    def note_memory(self, base):
        """Peak memory of the programs beside their times; ours needs no more than `base`."""
        for name, samples in self.samples.items():
            if 'memory' in samples[0]:
                self.values.setdefault(name, {})['memory'] = max(sample['memory'] for sample in samples)
        if base in self.samples and 'ours' in self.samples:
            self.reach('ours', self.values[base]['memory'], self.values['ours']['memory'], what='bytes of memory')

    def record(self):
        """For JSON and tables."""
        variants = {name: {'wall_us': self.time(name, 'wall') * 1e6, 'cpu_us': self.time(name, 'cpu') * 1e6,
                           'wall_ratio': self.ratio(name, 'wall'), 'cpu_ratio': self.ratio(name, 'cpu'),
                           **self.values.get(name, {})} for name in self.samples}
        for name, values in self.values.items():
            variants.setdefault(name, values)
        return {'table': self.table, 'name': self.name, 'title': self.title, 'base': self.base,
                'metric': self.metric, 'variants': variants, 'missing': self.missing,
                'reach': self.reaches}


def trace(env, arguments, script=None):
    """What strace sees of a program: calls and bytes. With a script of the driver, of its last run alone."""
    if not env.strace:
        raise Absent('strace')
    log = env.path('strace.log')
    done = subprocess.run([env.strace, '-f', '-qq', '-o', log, '-e', f'trace={CALLS},?access,?faccessat,?faccessat2',
                           *arguments], input=script, capture_output=True, text=True,
                          env=dict(os.environ, BENCH_PEERS=env.peers or ''), check=False)
    if done.returncode != 0:
        raise Absent(f'strace: {done.stderr.strip()[-200:]}')
    counts = dict.fromkeys(('reads', 'read_bytes', 'writes', 'written_bytes', 'syncs', 'others'), 0)
    with open(log, encoding='utf-8', errors='replace') as lines:
        for line in lines:
            if script and '/bench-begin' in line:
                counts = dict.fromkeys(counts, 0)
            elif script and '/bench-end' in line:
                saved = dict(counts)
            else:
                count_call(line, counts)
    os.unlink(log)
    return saved if script else counts


def count_call(line, counts):
    """One line of strace; a call that another thread cut in two counts where it returns."""
    match = re.search(r'(\w+)(?:\(| resumed>).*= (-?\d+)', line)
    if not match:
        return
    name, result = match.group(1), max(int(match.group(2)), 0)
    if name.startswith('pread'):
        counts['reads'] += 1
        counts['read_bytes'] += result
    elif name.startswith('pwrite'):
        counts['writes'] += 1
        counts['written_bytes'] += result
    elif name in ('fdatasync', 'fsync'):
        counts['syncs'] += 1
    elif 'access' not in name:
        counts['others'] += 1


def memory_available():
    with open('/proc/meminfo', encoding='ascii') as lines:
        for line in lines:
            if line.startswith('MemAvailable'):
                return int(line.split()[1]) * 1024
    return 0


def allow_locking():
    """The pages of the files are locked; without the right to, runs are only less steady."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        pass
