#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: c-tests/machines.sh [--install | --rust | --c] [NAME...]
#
# Builds the library for other machines (by default for all below), by cargo and by meson, and runs its Rust and C tests
# there: i686 and x86-64 with musl on an x86-64 machine itself, the others under qemu-user. Installs what is missing
# (Debian, as root): cross compilers, qemu-user, Rust's standard library by rustup; musl is built from Debian's source.
# A machine whose standard library rustup has not is skipped. --install does no more than that, and fails where something is
# missing afterwards.
#
# QCOW2_MACHINES: the build folder, build-machines by default. QCOW2_MACHINES_PROFILE: cargo's for the library that meson
# builds, release by default; checked looks for overflows. QCOW2_MACHINES_RUST: names of Rust tests instead of all, `lib` for the
# unit tests. QCOW2_TEST_EFFORT: as everywhere, 0.2 by default, below which some tests say that they saw too little.
set -u

top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top" || exit 1
work=${QCOW2_MACHINES:-$top/build-machines}
mkdir -p "$work" || exit 1
work=$(cd "$work" && pwd)
export QCOW2_TEST_EFFORT=${QCOW2_TEST_EFFORT:-0.2} CARGO_TARGET_DIR=$work/cargo
. c-tests/steps.sh

all="i686 armv7 aarch64 riscv64 s390x x86_64-musl i686-musl armv7-musl aarch64-musl riscv64-musl s390x-musl"
[ "$(uname -m)" = x86_64 ] || all="x86_64 $all"

# Of machine $1: `rust`, its name for rustup; `gnu`, the prefix of Debian's cross compiler; `deb`, Debian's name; `emulator`,
# of qemu-user, empty where this machine runs its programs; and what meson wants to know.
describe() {
    libc=gnu endian=little
    case $1 in *-musl) libc=musl ;; esac
    case $1 in
        x86_64*) rust=x86_64-unknown-linux-$libc gnu=x86_64-linux-gnu deb=amd64 emulator=x86_64 family=x86_64 ;;
        i686*) rust=i686-unknown-linux-$libc gnu=i686-linux-gnu deb=i386 emulator=i386 family=x86 ;;
        armv7*) rust=armv7-unknown-linux-${libc}eabihf gnu=arm-linux-gnueabihf deb=armhf emulator=arm family=arm ;;
        aarch64*) rust=aarch64-unknown-linux-$libc gnu=aarch64-linux-gnu deb=arm64 emulator=aarch64 family=aarch64 ;;
        riscv64*) rust=riscv64gc-unknown-linux-$libc gnu=riscv64-linux-gnu deb=riscv64 emulator=riscv64 family=riscv64 ;;
        s390x*) rust=s390x-unknown-linux-$libc gnu=s390x-linux-gnu deb=s390x emulator=s390x family=s390x endian=big ;;
        *) return 1 ;;
    esac
    case $(uname -m)-$family in x86_64-x86 | x86_64-x86_64) emulator= ;; esac
    [ "$(uname -m)" != "$family" ] || emulator=
    machine=$1
    upper=$(echo "$rust" | tr a-z- A-Z_)
    lower=$(echo "$rust" | tr - _)
    compiler=$gnu-gcc
    root=/usr/$gnu
    [ $libc = gnu ] || root=$work/musl-$machine
    run=
    [ -z "$emulator" ] || run="qemu-$emulator -L $root"
}

have() { command -v "$1" >/dev/null 2>&1; }

packages() {
    local need=
    have "$gnu-gcc" || need="gcc-${gnu//_/-} libc6-dev-$deb-cross"
    if [ -n "$emulator" ]; then
        have "qemu-$emulator" || need="$need qemu-user"
    elif [ "$machine" = i686 ]; then
        [ -e /lib/ld-linux.so.2 ] || need="$need libc6-i386"
        [ -e /usr/lib32/libgcc_s.so.1 ] || need="$need lib32gcc-s1"
    fi
    [ -n "$need" ] || return 0
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # a list of words
    apt-get update -qq && apt-get install -y -qq --no-install-recommends $need
}

# Rust's standard library for the machine, or not: where there is no rustup, it may be there all the same.
standard_library() {
    local try
    [ ! -d "$(rustc --print target-libdir --target "$rust" 2>/dev/null)" ] || return 0
    have rustup || return 1
    for try in 1 2 3; do
        ! rustup target add "$rust" || return 0
    done
    return 1
}

# The source of musl, once, by apt's own means: with source lists of its own, this machine's stay as they are.
musl_source() {
    local from=$work/musl-source
    [ -z "$(ls -d "$from"/musl-*/configure 2>/dev/null)" ] || return 0
    mkdir -p "$from/lists/partial" && cd "$from" || return 1
    sed 's/^deb /deb-src /;s/^Types: *deb$/Types: deb-src/' /etc/apt/sources.list >one.list 2>/dev/null || :
    [ -s one.list ] || awk '/^Types:/{print "Types: deb-src"; next} {print}' /etc/apt/sources.list.d/debian.sources >one.sources
    local own=(-o "Dir::State::Lists=$from/lists" -o APT::Sandbox::User=root -o Dir::Etc::SourceParts=-
        -o "Dir::Etc::SourceList=$from/$(ls one.list one.sources 2>/dev/null | while read -r f; do [ ! -s "$f" ] || echo "$f"; done | head -n 1)")
    apt-get "${own[@]}" update -qq && apt-get "${own[@]}" source --download-only musl && tar -xf musl_*.orig.tar.*z
}

# musl for the machine, with a compiler `musl-gcc`. Unwinding is Rust's own: Debian's libgcc_eh asks glibc.
musl() (
    [ ! -x "$root/bin/musl-gcc" ] || exit 0
    musl_source || exit 1
    build=$work/musl-build-$machine
    rm -rf "$build" && mkdir -p "$build" && cd "$build" || exit 1
    "$(echo "$work"/musl-source/musl-*/configure)" --prefix="$root" --syslibdir="$root/lib" --target="$gnu" \
        CC="$gnu-gcc" AR="$gnu-ar" RANLIB="$gnu-ranlib" --enable-wrapper=gcc || exit 1
    make -j2 && make install || exit 1
    # Rust's libunwind for i686 asks for what other C libraries keep beside the compiler.
    echo 'void __stack_chk_fail(void); __attribute__((visibility("hidden"))) void __stack_chk_fail_local(void) { __stack_chk_fail(); }' |
        "$gnu-gcc" -x c -c -fPIC -o stack.o - && "$gnu-ar" rcs "$root/lib/libssp_nonshared.a" stack.o || exit 1
    unwind="$(rustc --print target-libdir --target "$rust")/self-contained/libunwind.a $root/lib/libssp_nonshared.a"
    sed -i "s|%:if-exists(libgcc_eh.a%s)|$unwind|" "$root/lib/musl-gcc.specs"
    kernel=/usr/$gnu/include
    [ -d "$kernel/linux" ] || kernel=/usr/include
    asm=$kernel/asm
    [ -d "$asm" ] || asm=/usr/include/$gnu/asm
    ln -sfn "$kernel/linux" "$root/include/linux"
    ln -sfn "$kernel/asm-generic" "$root/include/asm-generic"
    ln -sfn "$asm" "$root/include/asm"
)

cross_file() {
    local cc=$compiler wrapper='' flags=
    [ $libc = gnu ] || cc=$root/bin/musl-gcc
    # libgcc's atomics that choose their instructions when they run ask glibc how.
    [ "$machine" != aarch64-musl ] || flags="'-mno-outline-atomics'"
    [ -z "$run" ] || wrapper="exe_wrapper = ['${run// /\', \'}']"
    cat <<END
[binaries]
c = '$cc'
# This machine's own is not meant.
cpp = 'no-cxx-compiler'
ar = '$gnu-ar'
ld = '$gnu-ld'
objcopy = '$gnu-objcopy'
strip = '$gnu-strip'
$wrapper
[host_machine]
system = 'linux'
cpu_family = '$family'
cpu = '$family'
endian = '$endian'
[built-in options]
c_args = [$flags]
[properties]
needs_exe_wrapper = $([ -n "$run" ] && echo true || echo false)
END
}

# All of cargo's tests but those of the tree, the header and the planted bugs, which are the same on every machine.
rust_tests() {
    local tests=() name
    for name in ${QCOW2_MACHINES_RUST:-lib tests/*.rs tests/*/main.rs}; do
        name=$(basename "${name%/main.rs}" .rs)
        case $name in
            lib) tests+=(--lib) ;;
            header | layers | planted) ;;
            *) tests+=(--test "$name") ;;
        esac
    done
    local cc=$compiler
    [ $libc = gnu ] || cc=$root/bin/musl-gcc
    env "CARGO_TARGET_${upper}_LINKER=$gnu-gcc" ${run:+"CARGO_TARGET_${upper}_RUNNER=$run"} "CC_$lower=$cc" \
        "AR_$lower=$gnu-ar" "QCOW2_TEST_RUNNER=$run" cargo test --no-default-features --no-fail-fast --target "$rust" "${tests[@]}"
}

c_tests() {
    local build=$work/meson-$machine slow=2
    [ -z "$run" ] || slow=10
    if [ ! -f "$build/build.ninja" ]; then
        cross_file >"$work/$machine.cross" || return 1
        meson setup --cross-file "$work/$machine.cross" "-Dengine_target=$rust" \
            "-Dcargo_profile=${QCOW2_MACHINES_PROFILE:-release}" "$build" || return 1
    fi
    [ -z "$run" ] || local -x QCOW2_TEST_SLOW=1 "QCOW2_TEST_RUNNER=$run"
    meson compile -C "$build" && meson test -C "$build" --suite c --print-errorlogs -t "$slow"
}

parts="rust c"
case ${1:-} in
    --install | --rust | --c) parts=${1#--} && shift ;;
    -*) echo "usage: c-tests/machines.sh [--install | --rust | --c] [NAME...]" >&2 && exit 2 ;;
esac
for one in ${*:-$all}; do
    describe "$one" || { echo "no such machine: $one; there are: $all" >&2; exit 2; }
    if [ "$parts" = install ]; then
        standard_library && packages && { [ $libc = gnu ] || musl; } || exit 1
        continue
    fi
    if ! standard_library >/dev/null 2>&1; then
        skip "$machine" "rustup has no standard library for $rust"
        continue
    fi
    step "$machine: compilers, emulator" packages
    [ $libc = gnu ] || step "$machine: musl" musl
    case $parts in *rust*) step "$machine: Rust tests" rust_tests ;; esac
    case $parts in *c) step "$machine: library, tools, C tests" c_tests ;; esac
done
[ "$parts" = install ] || summary
