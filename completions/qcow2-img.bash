# SPDX-License-Identifier: MIT OR Apache-2.0
# bash completion of qcow2-img and qcow2-io. The programs are asked what they take, so that this cannot be out of date.

# Options in a help text: "  -f, --format FMT  format of the image" has -f and --format.
_qcow2_options()
{
    "$@" --help 2>/dev/null | sed -n 's/^ *\(-[^ ].*\)/\1/p' | sed 's/  .*//' |
        grep -oE -- '(^|[ ,])--?[A-Za-z][A-Za-z-]*' | tr -d ' ,'
}

_qcow2_files()
{
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$1")
}

_qcow2_img()
{
    local word=${COMP_WORDS[COMP_CWORD]} program=${COMP_WORDS[0]} command='' at
    for ((at = 1; at < COMP_CWORD; at++)); do
        case ${COMP_WORDS[at]} in
            -T | --trace) at=$((at + 1)) ;;
            -*) ;;
            *) command=${COMP_WORDS[at]} && break ;;
        esac
    done
    if [ -z "$command" ] && [[ $word != -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$("$program" --help 2>/dev/null |
            sed -n '/^Commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p')" -- "$word")
    elif [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(_qcow2_options "$program" ${command:+"$command"})" -- "$word")
    else
        case ${COMP_WORDS[COMP_CWORD - 1]} in
            -f | -F | -O | --format | --*-format)
                mapfile -t COMPREPLY < <(compgen -W 'qcow2 raw' -- "$word") ;;
            *) _qcow2_files "$word" ;;
        esac
    fi
}

_qcow2_io()
{
    local word=${COMP_WORDS[COMP_CWORD]}
    case $word in
        -*) mapfile -t COMPREPLY < <(compgen -W "$(_qcow2_options "${COMP_WORDS[0]}")" -- "$word") ;;
        *) _qcow2_files "$word" ;;
    esac
}

complete -F _qcow2_img qcow2-img
complete -F _qcow2_io qcow2-io
