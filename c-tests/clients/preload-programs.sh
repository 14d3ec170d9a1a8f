#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# usage: preload-programs.sh SHIM TOOLS [NAME...]
#
# Programs do on an image under the shim what they do on a raw file without it: the same output, the same status, the
# same contents; and without the shim they do not. Each check runs three times in a directory of its own where disk.qcow2
# is a raw file (raw), an image under the shim (image), and an image without the shim (bare), which must come out another way.
set -u
shim=$1 tools=$2
shift 2
wanted=" $* "
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export LC_ALL=C TZ=UTC E2FSPROGS_FAKE_TIME=1700000000 SOURCE_DATE_EPOCH=1700000000 MTOOLS_SKIP_CHECK=1
export E2FSPROGS_UNDO_DIR=none HOME=$work
unset LIBQCOW2_PRELOAD
export LIBQCOW2_REPORT=$work/report
failed=0 skipped= ran=0
mkdir "$work/files"

# 48 MiB: lines, bytes that look random, holes.
base=$work/base
{ seq 1 20000; openssl enc -aes-128-ctr -K 00 -iv 00 -in /dev/zero 2>/dev/null | head -c 700000; } >"$base"
truncate -s 48M "$base"
printf 'end of it' | dd of="$base" bs=1 seek=30000000 conv=notrunc status=none
export OTHER=$work/files/other
head -c 3000000 "$base" | tr 0-9 a-j >"$OTHER"
"$tools/qcow2-img" convert -f raw -O qcow2 -o lazy_refcounts=on "$base" "$base.qcow2" || exit 1

# one SIDE COMMAND: runs it, leaves what it said in SIDE.out.
one()
{
    rm -rf "$work/disk"
    mkdir "$work/disk"
    case $1 in
    raw) cp --sparse=always "$base" "$work/disk/disk.qcow2" ;;
    *) cp "$base.qcow2" "$work/disk/disk.qcow2" ;;
    esac
    (
        cd "$work/disk" || exit 1
        [ "$1" != image ] || export LD_PRELOAD=$shim
        # The shell that runs the command is under the shim, too.
        timeout 60 bash -c "$2" </dev/null >"$work/$1.out" 2>&1
        echo "status $?" >>"$work/$1.out"
    )
    rm -rf "$work/$1.disk"
    mv "$work/disk" "$work/$1.disk"
}

# Whether the image shows what the raw file has. "any": only that it is sound.
same_contents()
{
    local side=$1 contents=$2
    "$tools/qcow2-img" check "$work/$side.disk/disk.qcow2" >"$work/check.out" 2>&1 || return 1
    [ "$contents" = any ] ||
        "$tools/qcow2-img" compare -f raw -F qcow2 "$work/raw.disk/disk.qcow2" "$work/$side.disk/disk.qcow2" \
            >"$work/compare.out" 2>&1
}

# check NAME PROGRAM CONTENTS COMMAND
check()
{
    local name=$1 program=$2 contents=$3 command=$4
    [ "$wanted" = "  " ] || [[ $wanted = *" $name "* ]] || return 0
    if ! command -v "$program" >/dev/null; then
        skipped="$skipped $program"
        return 0
    fi
    ran=$((ran + 1))
    one raw "$command"
    one image "$command"
    one bare "$command"
    if ! cmp -s "$work/raw.out" "$work/image.out"; then
        echo "$name: says another thing than on a raw file:"
        diff "$work/raw.out" "$work/image.out" | head -n 10
        failed=1
    elif ! same_contents image "$contents"; then
        echo "$name: leaves another thing than on a raw file:"
        cat "$work/check.out" "$work/compare.out" 2>/dev/null | head -n 5
        failed=1
    fi
    if cmp -s "$work/raw.out" "$work/bare.out" && same_contents bare "$contents"; then
        echo "$name: the same without the shim, so that this shows nothing"
        failed=1
    fi
}

check dd dd same 'dd if=$OTHER of=disk.qcow2 bs=64k status=none'
check dd-notrunc dd same 'dd if=$OTHER of=disk.qcow2 bs=100k seek=7 skip=3 conv=notrunc status=none; dd if=disk.qcow2 bs=4k skip=11 count=300 status=none | sha256sum'
check dd-direct dd same 'dd if=disk.qcow2 iflag=direct bs=1M status=none | sha256sum; dd if=$OTHER of=disk.qcow2 oflag=direct bs=4k count=5 conv=notrunc status=none'
check dd-odd dd same 'dd if=$OTHER of=disk.qcow2 bs=777 count=100 seek=3 conv=notrunc,fsync status=none; dd if=/dev/zero of=disk.qcow2 bs=1 count=1 seek=60M oflag=append conv=notrunc status=none'
check dd-append dd same 'dd if=$OTHER of=disk.qcow2 bs=64k oflag=append conv=notrunc,fdatasync status=none'
check cp-from cp any 'cp --sparse=always disk.qcow2 out && sha256sum out && stat -c %s out; cp disk.qcow2 out2; cmp out out2'
check cp-to cp same 'cp $OTHER disk.qcow2; cp --sparse=always $OTHER disk.qcow2; cp -p $OTHER disk.qcow2; stat -c "%s %a %Y" disk.qcow2'
check install install same 'install -m 600 $OTHER disk.qcow2; stat -c "%s %a" disk.qcow2; cat disk.qcow2 | sha256sum'
check cat cat any 'cat disk.qcow2 | sha256sum; cat <disk.qcow2 | sha256sum'
check head head any 'head -c 100000 disk.qcow2 | sha256sum; head -n 3 disk.qcow2'
check tail tail any 'tail -c 19000000 disk.qcow2 | sha256sum; tail -c +47000000 disk.qcow2 | wc -c'
check cmp cmp any 'cmp disk.qcow2 $OTHER; head -c 20000 disk.qcow2 | cmp -n 20000 - disk.qcow2; cmp -i 29999990 -n 9 -l disk.qcow2 $OTHER'
check both sh same 'S=${LD_PRELOAD-}; env -u LD_PRELOAD bash -c "LD_PRELOAD=$S sh -c \"echo one; echo two >&2; echo three; cat nowhere\" >disk.qcow2 2>&1"; sha256sum disk.qcow2'
check sums sha256sum any 'sha256sum disk.qcow2; md5sum <disk.qcow2; sha256sum - <disk.qcow2; cksum disk.qcow2'
check od od any 'od -A d -t x1 -N 200 disk.qcow2; od -j 29999990 -N 30 -c <disk.qcow2; hexdump -C -n 64 disk.qcow2; xxd -l 64 disk.qcow2'
check zstd zstd any 'truncate -s 3M disk.qcow2; zstd -q -c disk.qcow2 | zstd -d -q -c | sha256sum; zstd -q -T1 disk.qcow2 -o x.zst && zstd -d -q x.zst -c | sha256sum'
check zstd-to zstd same 'zstd -q -c $OTHER >x.zst; zstd -q -d -f x.zst -o disk.qcow2; sha256sum disk.qcow2'
check gzip gzip any 'truncate -s 3M disk.qcow2; gzip -c disk.qcow2 | gzip -dc | sha256sum'
check openssl openssl any 'truncate -s 3M disk.qcow2; openssl dgst -sha256 disk.qcow2'
check tar tar any 'truncate -s 3M disk.qcow2; tar --mtime=@0 --owner=0 --group=0 --mode=644 -cf x.tar disk.qcow2; tar -tvf x.tar; tar -xOf x.tar | sha256sum; tar --mtime=@0 --owner=0 --group=0 --mode=644 -c disk.qcow2 | tar -xO | sha256sum'
check tar-to tar same 'tar --mtime=@0 --owner=0 --group=0 --mode=644 -cf disk.qcow2 -C ${OTHER%/*} other; tar -tf disk.qcow2; tar -xOf disk.qcow2 other | sha256sum'
check cpio cpio any 'truncate -s 3M disk.qcow2; echo disk.qcow2 | cpio -o -H newc 2>/dev/null | cpio -i --to-stdout 2>/dev/null | sha256sum'
check file file any 'file disk.qcow2; file - <disk.qcow2'
check stat stat any 'stat -c "%s %F %n" disk.qcow2; stat -L -c "%s %F" /dev/stdin <disk.qcow2; ls -ln disk.qcow2 | cut -d" " -f5; find . -size +40M -name "*.qcow2"; test -s disk.qcow2; wc -c disk.qcow2; du --apparent-size -b disk.qcow2; [ disk.qcow2 -ef ./disk.qcow2 ] && echo same'
check truncate truncate same 'truncate -s 40M disk.qcow2; truncate -s +1000 disk.qcow2; stat -c %s disk.qcow2; truncate -s 2000000 disk.qcow2; truncate -s 3000000 disk.qcow2; fallocate -p -o 4096 -l 100000 disk.qcow2; fallocate -z -o 200000 -l 50000 disk.qcow2; fallocate -l 10000000 disk.qcow2; stat -c %s disk.qcow2'
check sfdisk sfdisk same 'printf "label: dos\nlabel-id: 0x1\n2048,20480\n,,\n" | sfdisk -q disk.qcow2; sfdisk -d disk.qcow2; fdisk -l disk.qcow2; wipefs disk.qcow2'
check gdisk sgdisk any 'sgdisk -U 11111111-1111-1111-1111-111111111111 -n 1:2048:40000 -u 1:22222222-2222-2222-2222-222222222222 disk.qcow2; sgdisk -p disk.qcow2'
check parted parted any 'parted -s disk.qcow2 mklabel gpt mkpart a 1MiB 10MiB mkpart b 10MiB 40MiB; parted -sm disk.qcow2 print | sed "s|$PWD||"'
ext4='mke2fs -q -F -t ext4 -U 11111111-1111-1111-1111-111111111111 -E hash_seed=22222222-2222-2222-2222-222222222222'
check mke2fs mke2fs same "$ext4 disk.qcow2; e2fsck -fn disk.qcow2; blkid -p disk.qcow2"
check debugfs debugfs same "$ext4 disk.qcow2; debugfs -w -R \"write \$OTHER there\" disk.qcow2 2>/dev/null; debugfs -R 'cat /there' disk.qcow2 2>/dev/null | sha256sum; dumpe2fs -h disk.qcow2 2>/dev/null | grep -i count"
check resize2fs resize2fs any "$ext4 disk.qcow2 40M; e2fsck -fy disk.qcow2; resize2fs disk.qcow2; resize2fs -M disk.qcow2; tune2fs -L name disk.qcow2; e2fsck -fn disk.qcow2; e2label disk.qcow2"
check mke2fs-d mke2fs any "$ext4 -d \${OTHER%/*} disk.qcow2; e2fsck -fn disk.qcow2; debugfs -R 'cat /other' disk.qcow2 2>/dev/null | sha256sum"
check e2undo mke2fs any "$ext4 disk.qcow2; tune2fs -z undo -L other disk.qcow2 >/dev/null; e2label disk.qcow2; e2undo undo disk.qcow2; e2label disk.qcow2"
check mkfs.xfs mkfs.xfs any 'truncate -s 320M disk.qcow2; mkfs.xfs -q -f -m uuid=11111111-1111-1111-1111-111111111111 disk.qcow2; xfs_repair -n disk.qcow2 2>&1 | tail -n 3; xfs_repair disk.qcow2 2>&1 | tail -n 1; xfs_db -r -c "sb 0" -c "p dblocks" disk.qcow2'
check mkfs.btrfs mkfs.btrfs any 'truncate -s 200M disk.qcow2; mkfs.btrfs -q -f disk.qcow2; btrfs check disk.qcow2 2>&1 | grep -c "no error"; btrfs inspect-internal dump-super disk.qcow2 | grep ^total_bytes'
check mkfs.vfat mkfs.vfat same 'mkfs.vfat --invariant disk.qcow2; fsck.vfat -n disk.qcow2'
check mtools mcopy any 'mkfs.vfat --invariant disk.qcow2; mcopy -i disk.qcow2 $OTHER ::/there; mdir -b -i disk.qcow2; mcopy -i disk.qcow2 ::/there back; cmp back $OTHER; minfo -i disk.qcow2 | grep "big size"'
for engine in psync sync vsync pvsync pvsync2 posixaio; do
    check "fio-$engine" fio same "fio --name=a --filename=disk.qcow2 --ioengine=$engine --rw=randwrite --bs=4k --size=4M --iodepth=4 --randseed=7 --refill_buffers --end_fsync=1 --thread >/dev/null"
done
check fio-forked fio same 'fio --name=a --filename=disk.qcow2 --ioengine=psync --rw=write --bs=16k --size=4M --randseed=7 --refill_buffers >/dev/null'
check python3 python3 same 'python3 - <<"E"
import os, shutil, mmap, io
f = open("disk.qcow2", "r+b")
print(f.seek(0, 2), f.read(10)); f.seek(100); f.write(b"x" * 1000); f.flush()
d = os.dup(f.fileno()); print(os.lseek(d, 0, 1), os.pread(d, 4, 100), os.fstat(d).st_size)
os.pwritev(d, [b"ab", b"cd"], 5000); print(os.preadv(d, [bytearray(3)], 5001))
print(os.lseek(d, 0, os.SEEK_DATA), os.lseek(d, 31000000, os.SEEK_HOLE))
try: os.lseek(d, 0x7000000, os.SEEK_DATA)
except OSError as e: print(e)
os.posix_fallocate(d, 0, 60000000); os.ftruncate(d, 55000000); print(os.stat("disk.qcow2").st_size)
shutil.copyfile("disk.qcow2", "copy"); print(open("copy", "rb").read() == open("disk.qcow2", "rb").read())
m = mmap.mmap(os.open("disk.qcow2", os.O_RDWR), 4096, mmap.MAP_PRIVATE); print(m[90:110])
f.close(); os.close(d)
import subprocess
print(subprocess.run(["head", "-c", "20"], stdin=open("disk.qcow2"), capture_output=True).stdout)
E'
check perl perl same 'perl -e "open F, q(+<), q(disk.qcow2) or die; seek F, 1000, 0; print F q(perl was here); seek F, 0, 2; print tell F; print -s q(disk.qcow2); close F; open G, q(>>), q(disk.qcow2); print G q(y) x 512;"'
check node node same 'node -e "const fs=require(\"fs\");const f=fs.openSync(\"disk.qcow2\",\"r+\");fs.writeSync(f,\"node\",700);const b=Buffer.alloc(9);fs.readSync(f,b,0,9,698);console.log(b.toString(),fs.fstatSync(f).size,fs.statSync(\"disk.qcow2\").size);fs.ftruncateSync(f,10000000);fs.closeSync(f);console.log(fs.readFileSync(\"disk.qcow2\").length);fs.copyFileSync(\"disk.qcow2\",\"c\");console.log(fs.statSync(\"c\").size)"'
check nbdkit nbdkit same 'nbdkit -U - file disk.qcow2 --run "nbdcopy \$uri - | sha256sum; nbdcopy $OTHER \$uri; nbdinfo --size \$uri"'
check qemu-io qemu-io same 'qemu-io -f raw -c "write -P 7 1M 100k" -c "read -P 7 1M 4k" -c "write -z 2M 64k" -c "discard 3M 1M" -c "flush" -c "length" disk.qcow2 2>&1 | grep -v ops'
check qemu-img qemu-img same 'qemu-img convert -f raw -O raw disk.qcow2 out; sha256sum out; qemu-img convert -n -f raw -O raw $OTHER disk.qcow2; qemu-img info -f raw disk.qcow2 | grep virtual'
check sqlite3 sqlite3 any 'truncate -s 0 disk.qcow2; sqlite3 disk.qcow2 "create table t(a); insert into t select value from generate_series(1,2000); update t set a=a+1 where a%3=0; vacuum;"; sqlite3 disk.qcow2 "select count(*), sum(a) from t; pragma integrity_check; pragma journal_mode=persist; delete from t where a>1000; select count(*) from t;"'
check gcc gcc any 'echo "int main(void){return 42;}" >a.c; gcc -o disk.qcow2 a.c; cat disk.qcow2 >a.out; chmod +x a.out; ./a.out; echo $?; gcc -c -o disk.qcow2 a.c; nm disk.qcow2'
check shell bash any 'echo one >disk.qcow2; { echo two; /bin/echo three; } >>disk.qcow2; cat disk.qcow2; exec 5<>disk.qcow2; read -r a <&5; echo "$a"; head -c 2 <&5; cat <&5; echo four >&5; exec 5>&-; while read -r l; do echo "line $l"; done <disk.qcow2; sort -r disk.qcow2; sed -n 2p <disk.qcow2; awk "{print NR}" disk.qcow2; grep -c o disk.qcow2; wc -l <disk.qcow2; (cat disk.qcow2; echo $BASHPID >/dev/null) | tac; cat /dev/stdin <disk.qcow2'
check dash dash any 'dash -c "echo one >disk.qcow2; echo two >>disk.qcow2; cat <disk.qcow2; read a <disk.qcow2; echo \$a"'
check zsh zsh any 'zsh -fc "echo one >disk.qcow2; print two >>disk.qcow2; cat <disk.qcow2; read a <disk.qcow2; echo \$a"'
check xorriso xorriso any 'xorriso -as mkisofs -quiet -o disk.qcow2 -V NAME ${OTHER%/*} 2>/dev/null; xorriso -indev disk.qcow2 -find / 2>/dev/null; file disk.qcow2'
check squashfs mksquashfs same 'unset SOURCE_DATE_EPOCH; mksquashfs ${OTHER%/*} disk.qcow2 -quiet -noappend -no-progress -all-time 0 -mkfs-time 0 2>/dev/null | tail -n 1; unsquashfs -ll disk.qcow2 | sed "s/.*squash/squash/"; unsquashfs -cat disk.qcow2 other | sha256sum'
check rsync rsync same 'rsync --inplace --no-whole-file $OTHER disk.qcow2; rsync disk.qcow2 copy; sha256sum copy'
check sed sed any 'truncate -s 3M disk.qcow2; sed -n 5,7p disk.qcow2; sort disk.qcow2 | head -n 300000 | sha256sum; tr 0-9 a-j <disk.qcow2 | sha256sum; split -n 3 disk.qcow2 part. && cat part.* | sha256sum; cut -c1-3 disk.qcow2 | head -n 5; tee copy <disk.qcow2 | sha256sum; strings -n 8 disk.qcow2 | tail -n 1'

# Emulators: a boot sector that writes itself further on. PDP-11: RK11 writes 256 words from 0 to sector 5, then HALT.
words() { for w in "$@"; do printf "\\x$(printf %02x $((8#$w & 255)))\\x$(printf %02x $((8#$w >> 8)))"; done; }
words 012700 000101 110037 177566 012737 177400 177406 012737 000000 177410 012737 000005 177412 012737 000003 177404 \
    105737 177404 100375 000000 >"$work/files/pdp11.boot"
printf 'set cpu 11/40\nattach rk0 disk.qcow2\nboot rk0\ndetach rk0\nquit\n' >"$work/files/pdp11.ini"
check simh pdp11 same 'dd if=${OTHER%/*}/pdp11.boot of=disk.qcow2 conv=notrunc status=none; pdp11 ${OTHER%/*}/pdp11.ini; od -j 2560 -N 16 disk.qcow2'

# PC: "A" to port 0xe9, int 13h writes sector 5, "B", and "Shutdown" to port 0x8900.
boot='\xfa\x31\xc0\x8e\xd8\x8e\xc0\x8e\xd0\xbc\x00\x7c\xb0\x41\xe6\xe9\xb8\x01\x03\xbb\x00\x7c\xb9\x05\x00\xba\x80\x00\xcd\x13\xb0\x42\xe6\xe9'
for letter in 53 68 75 74 64 6f 77 6e; do boot="$boot\\xb0\\x$letter\\xba\\x00\\x89\\xee"; done
printf "$boot\\xf4\\xeb\\xfd" >"$work/files/pc.boot"
printf '\x55\xaa' >"$work/files/pc.end"
cat >"$work/files/bochsrc" <<'E'
megs: 32
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
ata0-master: type=disk, path=disk.qcow2, mode=flat, cylinders=40, heads=16, spt=63
boot: disk
port_e9_hack: enabled=1
display_library: rfb, options="timeout=0"
log: bochs.log
speaker: enabled=0
sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy
E
bochs=bochs
[ -e /usr/share/vgabios/vgabios.bin ] && [ -e /usr/share/bochs/BIOS-bochs-latest ] || bochs=bochs-with-bios
check bochs $bochs same 'truncate -s 20643840 disk.qcow2; dd if=${OTHER%/*}/pc.boot of=disk.qcow2 conv=notrunc status=none; dd if=${OTHER%/*}/pc.end of=disk.qcow2 conv=notrunc bs=1 seek=510 status=none; printf "c\nq\n" | bochs -q -f ${OTHER%/*}/bochsrc 2>/dev/null | grep -a -o "AB" | head -n 1; od -j 2048 -N 16 disk.qcow2'
check mv mv any 'truncate -s 3M disk.qcow2; mv disk.qcow2 plain; head -n 2 plain; sha256sum plain; mv plain disk.qcow2; sha256sum disk.qcow2; mv disk.qcow2 b.qcow2; mv b.qcow2 disk.qcow2; ls'
check rsync-whole rsync same 'rsync -t $OTHER disk.qcow2; sha256sum disk.qcow2; rsync -a disk.qcow2 copy; sha256sum copy'
check c++ g++ same 'printf "#include <fstream>\n#include <iostream>\nint main(){std::fstream f(\"disk.qcow2\");std::string l;std::getline(f,l);std::getline(f,l);std::cout<<l<<f.tellg();f.seekp(7000);f<<\"from c++\";f.seekg(0,std::ios::end);std::cout<<f.tellg();f.close();while(std::cin>>l&&l!=\"9\")std::cout<<l;}" >a.cc; env -u LD_PRELOAD g++ -O0 -o a a.cc && ./a <disk.qcow2'
check patch patch any 'dd if=disk.qcow2 bs=100 count=1 status=none | cat >p; diff -q p disk.qcow2; head -n 20 disk.qcow2 | diff - <(sed s/7/x/ <disk.qcow2 | head -n 20)'
check copies cp any 'head -n 1 disk.qcow2; cp disk.qcow2 disk.qcow2~; cmp disk.qcow2 disk.qcow2~; cp -a disk.qcow2 second.qcow2; cmp second.qcow2 disk.qcow2; ln disk.qcow2 third.qcow2; cmp third.qcow2 disk.qcow2; ln -s disk.qcow2 fourth.qcow2; cmp fourth.qcow2 disk.qcow2'
check links ln any 'truncate -s 3M disk.qcow2; ln -s disk.qcow2 vda; mkdir d; ln -s ../vda d/vdb; ln -s $PWD/d/vdb vdc; head -n 1 vda; md5sum d/vdb <vdc; od -N 20 vdc; stat -L -c %s vda vdc; stat -c %F vda; dd if=$OTHER of=vdc bs=4k seek=3 conv=notrunc status=none; sha256sum disk.qcow2; echo hello >d/vdb; cat disk.qcow2; truncate -s 100 vda; stat -c %s disk.qcow2; ln -s new.qcow2 vde; echo new >vde; cat vde new.qcow2; ln -s plain dangling.qcow2; echo z >dangling.qcow2; cat dangling.qcow2; ln -s loop loop; cat loop; ln -s none none2; cat none2; python3 -c "import os; print(os.stat(\"vda\").st_size, os.open(\"vdc\", os.O_RDWR | os.O_NOFOLLOW))" 2>&1 | tail -n 1'
check wide rev any 'truncate -s 100000 disk.qcow2; export LC_ALL=C.UTF-8; rev disk.qcow2 | md5sum; rev <disk.qcow2 | head -c 3000 | md5sum; colrm 3 <disk.qcow2 | md5sum; col <disk.qcow2 | md5sum; ul disk.qcow2 | md5sum; rev $OTHER >disk.qcow2; md5sum disk.qcow2; echo äöü | rev >disk.qcow2; cat disk.qcow2; colrm 2 2 <disk.qcow2'
check flock flock any 'head -c 9 disk.qcow2; flock disk.qcow2 sleep 0.8 & sleep 0.4; flock -n disk.qcow2 echo one; flock -n -s disk.qcow2 echo shared; wait; flock -n disk.qcow2 echo two'
check shred shred same 'shred -n 0 -z -s 100000 disk.qcow2'

[ -z "$skipped" ] || echo "not installed:$skipped"
if [ "$ran" = 0 ]; then
    exit 77
fi
echo "$ran checks"
exit $failed
