#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# usage: preload-settings.sh SHIM TOOLS
# What the environment says to the shim, what it reports, and files under the name that are no images.
set -u
shim=$1 tools=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
unset LIBQCOW2_PRELOAD LIBQCOW2_REPORT LD_PRELOAD
export LC_ALL=C
failed=0

# expect NAME WANTED COMMAND: what the command says, under the shim unless it says otherwise.
expect()
{
    local said
    said=$(LD_PRELOAD=$shim timeout 30 bash -c "$3" 2>&1 </dev/null | tr -d '\0')
    if [ "$said" != "$2" ]; then
        printf '%s: said\n%s\nand not\n%s\n' "$1" "$said" "$2"
        failed=1
    fi
}

# reported NAME PATTERN
reported()
{
    if ! grep -q -- "$2" report 2>/dev/null; then
        echo "$1: the report lacks: $2"
        head -n 20 report
        failed=1
    fi
}

make() { rm -f "$1"; "$tools/qcow2-img" create -q -f qcow2 "$1" 1M || exit 1; }
make a.qcow2
echo "text of a" | LD_PRELOAD=$shim dd of=a.qcow2 conv=notrunc status=none
cp a.qcow2 b.img
cp a.qcow2 c.qcow2

expect off QFI 'LIBQCOW2_PRELOAD=off head -c 3 a.qcow2'
expect "a tool that must see the container" "No errors were found on the image." \
    "LIBQCOW2_PRELOAD=off $tools/qcow2-img check a.qcow2 | head -n 1"
expect "a path" "text of a" 'LIBQCOW2_PRELOAD=$PWD/b.img head -c 9 b.img'
expect "a name" "text of a" 'LIBQCOW2_PRELOAD=b.img head -c 9 ./b.img'
expect "others are not named" QFI 'LIBQCOW2_PRELOAD=b.img head -c 3 a.qcow2'
expect "two rules" "text of atext of a" 'LIBQCOW2_PRELOAD="b.img:*.qcow2" head -q -c 9 a.qcow2 b.img'
expect "read-only" "bash: line 1: a.qcow2: Read-only file system" 'LIBQCOW2_PRELOAD="*.qcow2,ro" bash -c "echo x >a.qcow2"'
expect "read-only reads" "text of a" 'LIBQCOW2_PRELOAD="*.qcow2,ro" head -c 9 a.qcow2'
expect "a device" "block special file 1048576" \
    'export LIBQCOW2_PRELOAD="*.qcow2,device"; echo $(stat -c %F a.qcow2) $(blockdev --getsize64 a.qcow2)'
expect "a device is full" "dd: error writing 'a.qcow2': No space left on device
dd" 'export LIBQCOW2_PRELOAD="*.qcow2,device"; dd if=/dev/zero of=a.qcow2 bs=64k seek=15 count=2 status=none; echo dd'
expect "a device is discarded" "0" \
    'export LIBQCOW2_PRELOAD="*.qcow2,device"; blkdiscard -f a.qcow2 2>/dev/null; cat a.qcow2 | tr -d "\0" | wc -c'
expect "an option" "text of a" 'LIBQCOW2_PRELOAD="*.qcow2,cache=none,l2-cache-size=64k" head -c 9 c.qcow2'
rm -f report
expect "a wrong option" "head: cannot open 'c.qcow2' for reading: Invalid argument" \
    'export LIBQCOW2_REPORT=report LIBQCOW2_PRELOAD="*.qcow2,no-such-option=1"; head -c 9 c.qcow2'
reported "a wrong option" no-such-option

# What is no image: one errno, and the sentence.
: >empty.qcow2
echo "no image at all, but more than a header's worth of text: $(seq 100)" >text.qcow2
{ printf 'QFI\373\0\0\0\3'; head -c 2000 /dev/zero; } >damaged.qcow2
for name in empty text; do
    rm -f report
    expect "$name" "cat: $name.qcow2: Wrong medium type" "LIBQCOW2_REPORT=report cat $name.qcow2"
    reported "$name" "open: .*/$name.qcow2: .*EMEDIUMTYPE"
done
expect "text, appended to" "bash: line 1: text.qcow2: Wrong medium type" "echo x >>text.qcow2"
rm -f report
expect damaged "cat: damaged.qcow2: Invalid argument" "LIBQCOW2_REPORT=report cat damaged.qcow2"
reported damaged "open: .*/damaged.qcow2: .*EINVAL"
expect "damaged, written" "bash: line 1: damaged.qcow2: Invalid argument" "echo x >damaged.qcow2"
[ "$(head -c 3 damaged.qcow2)" = QFI ] || { echo "a damaged image was written to"; failed=1; }
expect "what is no image is listed" "empty.qcow2 0" 'stat -c "%n %s" empty.qcow2'
expect "empty, appended to" "2 x" 'echo x >>empty.qcow2; echo $(stat -c %s empty.qcow2) $(cat empty.qcow2)'

# What was served and what was not.
rm -f report
expect "a report" "" 'export LIBQCOW2_REPORT=$PWD/report; cat c.qcow2 >copy'
reported "a report" "cat.*served: read: [0-9]"
reported "a report" "cat.*not served: copy_file_range"

# A program without the shim opens, one with it goes on.
said=$(LD_PRELOAD=$shim head -c 9 <c.qcow2)
[ "$said" = "text of a" ] || { echo "an inherited container shows: $said"; failed=1; }
LD_PRELOAD=$shim sh -c 'echo new' >d.qcow2
expect "a new image on stdout" new 'cat d.qcow2'

expect "a name that looks like a removed one's" "text of a" \
    'cp c.qcow2 "e (deleted).qcow2"; sh -c "head -c 9" <"e (deleted).qcow2"'

if unshare -m umount -l /proc 2>/dev/null; then
    rm -f report
    expect "without /proc" "head: cannot open 'c.qcow2' for reading: Function not implemented" \
        'export LIBQCOW2_REPORT=$PWD/report; unshare -m env -u LD_PRELOAD sh -c "umount -l /proc; export LD_PRELOAD=$LD_PRELOAD; head -c 3 c.qcow2; head -c 3 <c.qcow2"'
    reported "without /proc" "head.*open: /proc is not mounted"
    reported "without /proc" "head.*inherited descriptor: /proc is not mounted"
fi

mkdir plain-fs
if unshare -m mount -t ramfs none plain-fs 2>/dev/null; then
    rm -f report
    expect "without attributes" 512 'export LIBQCOW2_REPORT=$PWD/report
        unshare -m sh -c "mount -t ramfs none plain-fs; echo x >plain-fs/a.qcow2; stat -c %s plain-fs/a.qcow2"'
    reported "without attributes" "keeps no attributes (EOPNOTSUPP)"
fi

# Two programs at once: one may write.
expect "in use" "dd: failed to open 'c.qcow2': Device or resource busy" \
    'mkfifo hold; (exec 3<>c.qcow2; : >ready; read -r line <hold) & until [ -e ready ]; do sleep 0.05; done
     dd if=/dev/null of=c.qcow2 conv=notrunc status=none; : >hold; wait'
expect "two readers" "text of btext of b" \
    'printf "text of b" | dd of=c.qcow2 conv=notrunc status=none; exec 3<c.qcow2; head -c 9 <&3; head -c 9 c.qcow2'

# The length of a file whose writer was killed counts until something is written past it by a program that does not know
# of it, and no longer: nothing of that is cut off.
killed_writer() { LD_PRELOAD=$shim bash -c 'exec 3>k.qcow2; printf 0123456789 >&3; kill -9 $$' 2>/dev/null; }
killed_writer
expect "a killed writer's file" 10 'stat -c %s k.qcow2'
expect "a killed writer's file, read" 0123456789 'cat k.qcow2'
expect "a killed writer's file, written" 10 'printf x | dd of=k.qcow2 bs=1 conv=notrunc status=none; stat -c %s k.qcow2'
rm k.qcow2
killed_writer
"$tools/qcow2-io" -c 'write -P 120 512k 64k' k.qcow2 >/dev/null 2>&1
expect "another's bytes" 65536 'tail -c +11 k.qcow2 | tr -d "\0" | wc -c'
expect "another's bytes, stat" yes '[ "$(stat -c %s k.qcow2)" -ge 589824 ] && echo yes'
expect "another's bytes after a write" 65536 \
    'printf y | dd of=k.qcow2 bs=1 conv=notrunc status=none; tail -c +11 k.qcow2 | tr -d "\0" | wc -c'
printf 0123456789 | LD_PRELOAD=$shim dd of=s.qcow2 status=none
"$tools/qcow2-io" -c 'write -P 120 0 512' s.qcow2 >/dev/null 2>&1
expect "another's bytes in the last sector" "512 522" \
    'printf 0123456789 >>s.qcow2; echo $(tr -dc x <s.qcow2 | wc -c) $(stat -c %s s.qcow2)'

# A kill in the middle of an open that makes an image leaves none, or all of it.
head -c 70000 /dev/zero >z.qcow2
expect "what an older kill has left" again 'echo again >z.qcow2; cat z.qcow2'
for i in {1..25}; do
    rm -f m.qcow2
    LD_PRELOAD=$shim bash -c 'echo hello >m.qcow2' &
    until [ -e m.qcow2 ] || ! kill -0 $! 2>/dev/null; do :; done
    kill -9 $! 2>/dev/null
    wait $! 2>/dev/null
    LD_PRELOAD=$shim cat m.qcow2 >/dev/null || { echo "a killed maker's image"; failed=1; }
done

# Backing files are followed; a relative name is looked for beside the image.
mkdir sub
cp c.qcow2 sub/base.qcow2
(cd sub && "$tools/qcow2-img" create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2)
expect "a backing file" "text of bmore" 'printf more | dd of=sub/top.qcow2 seek=9 bs=1 conv=notrunc status=none; head -c 13 sub/top.qcow2'
expect "a backing file that must not be opened" "head: cannot open 'sub/top.qcow2' for reading: Operation not permitted" \
    'LIBQCOW2_PRELOAD="*.qcow2,backing=off" head -c 13 sub/top.qcow2'
expect "the backing file stays" "text of b" 'head -c 13 sub/base.qcow2'

# Also after a change of its place, by one who holds it.
mkdir sub/sub
cp c.qcow2 sub/sub/base.qcow2
expect "a backing file, moved" "text of bmore" 'exec 3<sub/top.qcow2; mv sub/top.qcow2 sub/sub; /bin/true; read -r line <&3; echo "$line"'
mv sub/sub/top.qcow2 sub/top.qcow2

for image in a c d k s sub/top sub/base; do
    "$tools/qcow2-img" check -q "$image.qcow2" || { echo "$image.qcow2 is not sound"; failed=1; }
done
exit $failed
