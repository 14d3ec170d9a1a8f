# SPDX-License-Identifier: MIT OR Apache-2.0
"""Tables (Markdown) and charts (SVG) of what was measured."""

import math

SVG_COLOURS = {'raw': '#888888', 'ours': '#1f6fb2', 'imago': '#e08a2c', 'qcow2-rs': '#b04a8c', 'QEMU': '#5a9e4b'}


def number(value):
    if value is None:
        return ''
    if value == 0:
        return '0'
    if value >= 100:
        return f'{value:,.0f}'
    return f'{value:.3f}' if value < 0.1 else f'{value:.2f}'


def size(value):
    for unit in ('B', 'KiB', 'MiB', 'GiB'):
        if value < 1024 or unit == 'GiB':
            return f'{value:.0f} {unit}' if value >= 10 or unit == 'B' else f'{value:.1f} {unit}'
        value /= 1024


def duration(microseconds):
    for unit, least in (('s', 1e6), ('ms', 1e3)):
        if microseconds >= least:
            return f'{number(microseconds / least)} {unit}'
    return f'{number(microseconds)} us'


def cell(row, name):
    """Ratios to the base (the judged kind first), then what else is known."""
    if name in row['missing']:
        return row['missing'][name]
    values = row['variants'].get(name)
    if values is None:
        return ''
    text = ''
    first, second = ('wall', 'cpu') if row['metric'] == 'wall' else ('cpu', 'wall')
    if values.get(f'{first}_ratio') is not None:
        text = number(values[f'{first}_ratio'])
        if values.get(f'{second}_ratio') is not None:
            text += f' ({number(values[f"{second}_ratio"])})'
        if name == row['base']:
            text = duration(values[f'{first}_us'])
    elif values.get('wall_us') is not None:
        text = duration(values[f'{first}_us'])
    if 'memory' in values:
        text += f', {size(values["memory"])}'
    if 'rate' in values:
        text += f', {values["rate"]:.0f} MiB/s'
    return text.lstrip(', ')


def reached(row):
    """The cells that are to be reached, with what they are."""
    out = []
    for one in row['reach']:
        show = size if 'memory' in one['what'] else number
        value = 'fails' if one['value'] is None else show(one['value'])
        out.append(f'{one["variant"]}: {one["what"]} {value}, at most {show(one["limit"])}: '
                   f'{"pass" if one["pass"] else "**MISS**"}')
    return '<br>'.join(out)


def columns(rows):
    """Every variant of a table once, in order of appearance."""
    names = {}
    for row in rows:
        for name in [*row['variants'], *row['missing']]:
            if name != 'QEMU' and not name.startswith('QEMU '):
                names.setdefault(name)
    for row in rows:
        for name in [*row['variants'], *row['missing']]:
            names.setdefault(name)
    return list(names)


def table(title, rows):
    """One table: time over the base."""
    names = columns(rows)
    lines = [f'### {title}', '', '| | ' + ' | '.join(names) + ' | reach |', '| --- ' * (len(names) + 2) + '|']
    for row in rows:
        cells = [cell(row, name) for name in names]
        lines.append(f'| {row["title"]} | ' + ' | '.join(cells) + f' | {reached(row)} |')
    lines.append('')
    return '\n'.join(lines)


def wide(title, rows):
    """One table with a line for each variant, for rows that have many; counts of calls where they are known."""
    lines = [f'### {title}', '']
    names = columns(rows)
    keys = (('writes', 'writes per op'), ('written_bytes', 'bytes written per op'), ('syncs', 'syncs per op'))
    counts = {name: values for row in rows for name, values in row['variants'].items()
              if values and 'writes' in values}
    lines.append('| | ' + ' | '.join(row['title'] for row in rows) + ' | ' +
                 ' | '.join(text for _, text in keys) + ' |')
    lines.append('| --- ' * (len(rows) + 4) + '|')
    for name in names:
        cells = [cell(row, name) for row in rows]
        cells += [number(counts.get(name, {}).get(key)) for key, _ in keys]
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    lines += ['', '| to be reached | |', '| --- | --- |']
    lines += [f'| {row["title"]} | {reached(row)} |' for row in rows if row['reach']]
    lines.append('')
    return '\n'.join(lines)


def tables(rows, by_variant=()):
    titles = list(dict.fromkeys(row['table'] for row in rows))
    return '\n'.join((wide if title in by_variant else table)(title, [r for r in rows if r['table'] == title])
                     for title in titles)


def summary(rows):
    cells = [(row, one) for row in rows for one in row['reach']]
    missed = [f'{row["name"]}, {one["variant"]}: {one["what"]} {number(one["value"]) or "fails"}, limit {number(one["limit"])}'
              for row, one in cells if not one['pass']]
    return '\n'.join([f'{len(cells) - len(missed)} of {len(cells)} cells are reached.', *missed])


def colour(name):
    for key, value in SVG_COLOURS.items():
        if name.startswith(key):
            return value
    return '#555555'


def escape(text):
    return text.replace('&', '&amp;').replace('<', '&lt;')


def bars(rows, path, most=5.0):
    """Bars of the ratios to the base, row by row; what is longer than `most` is cut and labelled."""
    left, width, bar, gap = 330, 520, 14, 20
    body, y = [], 40
    for row in rows:
        shown = [(name, values.get(f'{row["metric"]}_ratio')) for name, values in row['variants'].items()
                 if name != row['base'] and values.get(f'{row["metric"]}_ratio') is not None]
        if not shown:
            continue
        middle = y + len(shown) * bar / 2
        body.append(f'<text x="{left - 110}" y="{middle + 4}" text-anchor="end">{escape(row["title"][:44])}</text>')
        for name, ratio in shown:
            length = min(ratio, most) / most * width
            body.append(f'<text x="{left - 6}" y="{y + 10}" text-anchor="end" font-size="9">{escape(name)}</text>'
                        f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 3}" fill="{colour(name)}"/>'
                        f'<text x="{left + length + 4:.1f}" y="{y + 10}" font-size="9">{number(ratio)}'
                        f'{" (cut)" if ratio > most else ""}</text>')
            y += bar
        y += gap
    one = left + width / most
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 70}" height="{y}" '
           f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
           f'<text x="{left}" y="16">time over the base (raw file), smaller is better</text>'
           f'<line x1="{one}" y1="24" x2="{one}" y2="{y}" stroke="#999" stroke-dasharray="3 3"/>'
           f'<text x="{one}" y="32" font-size="9" text-anchor="middle">1.0</text>{"".join(body)}</svg>\n')
    with open(path, 'w', encoding='utf-8') as out:
        out.write(svg)


# What must not grow may be this much more at the largest size; less than the second is the clock's.
MAY_GROW, LEAST = 1.5, 0.05


def grown(one):
    """What has grown with what it must not: name, value at the first and at the last size."""
    first, last = one['points'][0], one['points'][-1]
    flat = [(key, first[key], last[key]) for key in one['flat'] if key in first and key in last]
    return [(key, small, large) for key, small, large in flat if large > LEAST and large > MAY_GROW * small]


def growth_line(one):
    """One line: how much each of what must not grow has grown."""
    faults = {key for key, _, _ in grown(one)}
    first, last = one['points'][0], one['points'][-1]
    parts = []
    for key in one['flat']:
        times = f'x{last[key] / first[key]:.2f}' if first[key] else f'{number(first[key])} to {number(last[key])}'
        parts.append(f'{key} {times}{" **GROWS**" if key in faults else ""}')
    return f'From {first["x"]} to {last["x"]}: {", ".join(parts)}.'


def growth_summary(series):
    lines = [f'{one["name"]}: {key} grows from {number(small)} to {number(large)}'
             for one in series for key, small, large in grown(one)]
    count = sum(len(one['flat']) for one in series)
    return '\n'.join([f'{count - len(lines)} of {count} costs do not grow with what they must not grow with.', *lines])


def growth_tables(series):
    """One table for each thing that grows."""
    lines = []
    for one in series:
        keys = list(dict.fromkeys(key for point in one['points'] for key in point if key != 'x'))
        lines += [f'### {one["title"]}', '', f'Grows with it: {one["law"]}.', '',
                  f'| {one["x"]} | ' + ' | '.join(keys) + ' |', '| ---: ' * (len(keys) + 1) + '|']
        for point in one['points']:
            cells = [(size(point[key]) if key == 'memory' else number(point[key])) if key in point else ''
                     for key in keys]
            lines.append(f'| {point["x"]} | ' + ' | '.join(cells) + ' |')
        lines.append('')
        if one['flat']:
            lines += [growth_line(one), '']
    return '\n'.join(lines)


LINE_COLOURS = ('#1f6fb2', '#e08a2c', '#5a9e4b', '#b04a8c', '#888888', '#000000')


def growth_panel(one, left, top, width=300, height=170):
    """One picture: everything as a multiple of its smallest value, on a scale of powers of ten."""
    keys = list(dict.fromkeys(key for point in one['points'] for key in point if key != 'x'))
    relative = {}
    for key in keys:
        values = [point.get(key) for point in one['points']]
        least = min((value for value in values if value), default=1)
        relative[key] = [value / least if value else None for value in values]
    top_decade = max(1, math.ceil(math.log10(max(v for vs in relative.values() for v in vs if v))))
    step = width / max(1, len(one['points']) - 1)
    out = [f'<text x="{left}" y="{top - 8}" font-weight="bold">{escape(one["title"])}</text>']
    for decade in range(top_decade + 1):
        y = top + height - height * decade / top_decade
        out.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + width}" y2="{y:.1f}" stroke="#ddd"/>'
                   f'<text x="{left - 4}" y="{y + 4:.1f}" text-anchor="end" font-size="9">x{10 ** decade:,}</text>')
    for i, point in enumerate(one['points']):
        out.append(f'<text x="{left + i * step:.1f}" y="{top + height + 13}" text-anchor="middle" '
                   f'font-size="9">{escape(point["x"])}</text>')
    for index, key in enumerate(keys):
        points = ' '.join(f'{left + i * step:.1f},{top + height - height * math.log10(v) / top_decade:.1f}'
                          for i, v in enumerate(relative[key]) if v)
        paint = LINE_COLOURS[index % len(LINE_COLOURS)]
        out.append(f'<polyline points="{points}" fill="none" stroke="{paint}" stroke-width="2"/>'
                   f'<text x="{left + 6}" y="{top + 12 + index * 12}" font-size="10" fill="{paint}">{escape(key)}</text>')
    return ''.join(out)


def growth_chart(series, path):
    across, wide_by, high_by = 2, 400, 240
    rows = -(-len(series) // across)
    panels = ''.join(growth_panel(one, 60 + i % across * wide_by, 60 + i // across * high_by)
                     for i, one in enumerate(series))
    with open(path, 'w', encoding='utf-8') as out:
        out.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{across * wide_by + 20}" height="{rows * high_by + 40}" '
                  f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
                  f'<text x="60" y="20">each as a multiple of its smallest value</text>{panels}</svg>\n')
