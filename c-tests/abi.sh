#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: abi.sh ABI-DIR INCLUDE-DIR LIBRARY-DIR CC
#
# ABI-DIR has the header of each release, as qcow2-VERSION.h (make one: abi.sh --keep INCLUDE-DIR CC >ABI-DIR/qcow2-VERSION.h).
# A program that was built with one of them runs with the library of today: functions, types and constants are what they
# were, but for fields at the end of sized structs, and ABI-DIR/program.c, built with it, does what it did.
set -eu
if [ "$1" = --keep ]; then
    # Without comments, which would be most of it.
    printf '/* SPDX-License-Identifier: MIT OR Apache-2.0. The header of a release without its comments, for abi.sh. */\n'
    exec "$3" -fpreprocessed -dD -E -P "$2/qcow2.h"
fi
abi=$1 include=$2 library=$3 cc=$4
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
LC_ALL=C
export LC_ALL

# Constants by value; what versions and initial values are may change.
constants() {
    "$cc" -E -dM -I"$1" -include qcow2.h -x c /dev/null |
        grep -E '^#define QCOW2_[A-Z0-9_]+ .' | grep -v -E '^#define QCOW2_(VERSION|[A-Z_]*_INIT )' | sort
}
# Fields of an older header's structs, as SHOW(struct, field).
fields() {
    awk '/^typedef struct qcow2_[a-z0-9_]+ \{/ { type = $3; next }
        /^}/ { type = "" }
        type != "" && match($0, /\(\*[a-z0-9_]+\)\(/) { print "SHOW(" type ", " substr($0, RSTART + 2, RLENGTH - 4) ")"; next }
        type != "" && match($0, /[a-z0-9_]+;/) { print "SHOW(" type ", " substr($0, RSTART, RLENGTH - 1) ")" }' "$1"
}
# A variable of the type of each function and field: what debug information describes.
types() {
    {
        echo '#include <qcow2.h>'
        echo '#define SHOW(type, field) __typeof__(((type *)0)->field) abi_of_##type##_##field;'
        sed 's/.*/__typeof__(\&&) abi_of_&;/' "$scratch/functions"
        cat "$scratch/fields"
    } >"$scratch/types.c"
    "$cc" -g -fPIC -shared -I"$1" "$scratch/types.c" -o "$2"
}
# Where each field is, and how long.
layout() {
    {
        cat <<'END'
#include <qcow2.h>
#include <stdio.h>
#define SHOW(type, field) printf("%s.%s %zu %zu\n", #type, #field, offsetof(type, field), sizeof(((type *)0)->field));
int main(void) {
END
        cat "$scratch/fields"
        echo '}'
    } >"$scratch/layout.c"
    "$cc" -I"$1" "$scratch/layout.c" -o "$scratch/layout"
    "$scratch/layout"
}
# abidiff then believes of a struct that nothing else has changed in it: hence the layout, and the types of fields.
cat >"$scratch/suppressions" <<'END'
[suppress_type]
  type_kind = struct
  name_regexp = ^qcow2_
  has_data_member_inserted_at = end
END

count=0
for header in "$abi"/qcow2-*.h; do
    rm -rf "$scratch/old" "$scratch/run"
    mkdir "$scratch/old" "$scratch/run"
    cp "$header" "$scratch/old/qcow2.h"
    grep -oE '\bqcow2_[a-z0-9_]+\(' "$header" | tr -d '(' | sort -u >"$scratch/functions"
    [ "$(wc -l <"$scratch/functions")" -ge 40 ] || { echo "$header: the functions were not found"; exit 1; }

    constants "$scratch/old" >"$scratch/constants-old"
    constants "$include" >"$scratch/constants-new"
    comm -23 "$scratch/constants-old" "$scratch/constants-new" >"$scratch/lost"
    [ ! -s "$scratch/lost" ] || { echo "constants of $header that are others now:"; cat "$scratch/lost"; exit 1; }

    fields "$header" >"$scratch/fields"
    [ "$(wc -l <"$scratch/fields")" -ge 100 ] || { echo "$header: the fields were not found"; exit 1; }
    layout "$scratch/old" >"$scratch/layout-old"
    layout "$include" >"$scratch/layout-new"
    diff "$scratch/layout-old" "$scratch/layout-new" || { echo "fields are not where those of $header are"; exit 1; }

    types "$scratch/old" "$scratch/old.so"
    types "$include" "$scratch/new.so"
    if command -v abidiff >/dev/null; then
        abidiff --suppressions "$scratch/suppressions" --no-added-syms "$scratch/old.so" "$scratch/new.so" ||
            { echo "types are not those of $header"; exit 1; }
    else
        echo "abidiff is missing: types are not compared"
    fi

    "$cc" -std=gnu11 -Wall -Wextra -Werror -I"$scratch/old" "$abi/program.c" -o "$scratch/program" -L"$library" -lqcow2
    LD_LIBRARY_PATH=$library "$scratch/program" "$scratch/run"
    count=$((count + 1))
done
[ $count -ge 1 ] || { echo "no header of a release in $abi"; exit 1; }
echo "$count headers"
