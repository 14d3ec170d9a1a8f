# SPDX-License-Identifier: MIT OR Apache-2.0
"""Completions for bash and zsh, from the options that a tool's page describes."""

import re
from dataclasses import dataclass, field

from markup import Defs, Heading, plain

# What an argument may be, by the option or by the word that stands for the argument; files otherwise.
VALUES = {
    "--preallocation": "off metadata falloc full",
    "--discard": "unmap ignore",
    "--aio": "threads native io_uring",
    "FMT": "qcow2 luks raw",
    "MODE": "none writeback writethrough directsync unsafe",
    "human|json": "human json",
    "leaks|all": "leaks all",
}
# Arguments that are neither a word of a list nor a file.
FREE = {"SIZE", "BYTE", "DEPTH", "BYTES", "COUNT", "RATE", "OFFSET", "LENGTH", "SNAPSHOT", "KEY=VALUE,...", "OBJDEF", "OBJECTDEF",
        "TRACE", "SPEC", "STRING"}


@dataclass
class Option:
    names: list
    argument: str
    help: str

    def values(self):
        return VALUES.get(self.names[-1], VALUES.get(self.argument))


@dataclass
class Command:
    name: str
    summary: str
    options: list = field(default_factory=list)


def option_of(terms, paragraphs):
    term = terms[0]
    argument = re.search(r"\*([^*]+)\*", term)
    return Option(re.findall(r"`(--?[\w-]+)", term), argument[1].replace("\\|", "|") if argument else "",
                  plain(paragraphs[0]).split(". ")[0].rstrip("."))


def describe(blocks):
    """The tool's own options as the command "", then its commands (headings of level 3 below "Commands")."""
    commands, inside = [Command("", "")], False
    waits = False
    for block in blocks:
        if isinstance(block, Heading):
            inside = block.text == "Commands" or inside and block.level > 2
            if inside and block.level == 3:
                commands.append(Command(plain(block.text), ""))
                waits = True
        elif isinstance(block, Defs):
            options = [option_of(*item) for item in block.items if item[0][0].startswith("`-")]
            (commands[-1] if inside else commands[0]).options += options
        elif waits and hasattr(block, "text") and not hasattr(block, "language"):
            commands[-1].summary = re.split(r"[.,;:] ", plain(block.text))[0].rstrip(".")
            waits = False
    return commands


def words_of(options):
    return " ".join(name for option in options for name in option.names)


def value_case(options, indent):
    """Arms of a bash `case` on the word before; options of one list of values share an arm."""
    arms = {}
    for option in options:
        if option.values():
            action = f'COMPREPLY=($(compgen -W "{option.values()}" -- "$word"))'
        elif option.argument in FREE:
            action = "COMPREPLY=()"
        elif option.argument:
            action = 'COMPREPLY=($(compgen -f -- "$word"))'
        else:
            continue
        arms.setdefault(action, []).extend(option.names)
    return "".join(f"{indent}{'|'.join(names)})\n{indent}    {action}\n{indent}    return\n{indent}    ;;\n"
                   for action, names in arms.items())


def branch(command, indent):
    out = f"{indent}case $before in\n{value_case(command.options, indent)}{indent}esac\n"
    return out + f'{indent}words="{words_of(command.options)}"\n'


def bash(tool, commands):
    function = "_" + tool.replace("-", "_")
    top = commands[0]
    out = f"""# SPDX-License-Identifier: MIT OR Apache-2.0
# Completion of {tool} for bash. Generated from its manual page.
{function}()
{{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} command= words= i

"""
    named = [command for command in commands[1:] if tool == "qcow2-img"]
    if named:
        out += f"""    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
        {'|'.join(command.name for command in named)})
            command=${{COMP_WORDS[i]}}
            break
            ;;
        esac
    done
    case $command in
    "")
{branch(top, '        ')}        COMPREPLY=($(compgen -W "$words {' '.join(command.name for command in named)}" -- "$word"))
        return
        ;;
"""
        for command in named:
            out += f"    {command.name})\n{branch(command, '        ')}        ;;\n"
        out += "    esac\n"
    else:
        out += branch(top, "    ")
    out += f"""    if [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$word"))
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -o filenames -F {function} {tool}
"""
    return out


def quoted(text):
    """For the inside of '...' in an _arguments specification."""
    return re.sub(r"([\[\]:])", r"\\\1", text.replace("'", "'\\''"))


def specifications(options):
    for option in options:
        if option.values():
            action = f":{quoted(option.argument)}:({option.values()})"
        elif option.argument in FREE:
            action = f":{quoted(option.argument)}:"
        else:
            action = f":{quoted(option.argument)}:_files" if option.argument else ""
        names = option.names
        others = f"({' '.join(names)})" if len(names) > 1 else ""
        for name in names:
            equals = "=" if name.startswith("--") and option.argument else ""
            yield f"'{others}{name}{equals}[{quoted(option.help)}]{action}'"


def zsh(tool, commands):
    top = commands[0]
    out = f"#compdef {tool}\n# SPDX-License-Identifier: MIT OR Apache-2.0\n# Generated from its manual page.\n"
    if tool != "qcow2-img":
        lines = list(specifications(top.options)) + ["'*:file:_files'"]
        return out + "_arguments -s " + " \\\n    ".join(lines) + "\n"
    lines = list(specifications(top.options)) + ["'1:command:->command'", "'*::argument:->argument'"]
    out += "local state line\n_arguments -C -s " + " \\\n    ".join(lines) + " && return\n"
    out += "case $state in\ncommand)\n    local -a commands=(\n"
    out += "".join(f"        '{command.name}:{quoted(command.summary)}'\n" for command in commands[1:])
    out += "    )\n    _describe command commands\n    ;;\nargument)\n    case $words[1] in\n"
    for command in commands[1:]:
        lines = list(specifications(command.options)) + ["'*:file:_files'"]
        out += f"    {command.name})\n        _arguments -s " + " \\\n            ".join(lines) + "\n        ;;\n"
    return out + "    esac\n    ;;\nesac\n"
