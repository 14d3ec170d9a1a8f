// Go, by cgo: an image is an io.ReaderAt and an io.WriterAt.
// SPDX-License-Identifier: MIT OR Apache-2.0
//
//	cd go && go run . disk.qcow2
package main

// #cgo pkg-config: qcow2
// #include <qcow2.h>
// #include <stdlib.h>
import "C"

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

// Error is what a call returned: the errno, and the library's sentence.
type Error struct {
	Errno syscall.Errno
	Text  string
}

func (e *Error) Error() string { return e.Text }
func (e *Error) Unwrap() error { return e.Errno }

// call runs one call and takes its error; the text belongs to the thread, so that the goroutine must stay on it.
func call(run func() C.int64_t) (int64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	result := int64(run())
	if result < 0 {
		return 0, &Error{syscall.Errno(-result), C.GoString(C.qcow2_last_error())}
	}
	return result, nil
}

// Create makes an image of size bytes, or replaces what is in the file.
func Create(path string, size uint64) error {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	_, err := call(func() C.int64_t { return C.int64_t(C.qcow2_create(name, C.uint64_t(size), nil)) })
	return err
}

// Image is an open disk; any number of goroutines may use it. Close must be the last call.
type Image struct{ handle *C.qcow2_image }

func Open(path string, flags uint64) (*Image, error) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	var image Image
	_, err := call(func() C.int64_t {
		return C.int64_t(C.qcow2_open(name, C.uint64_t(flags), nil, &image.handle))
	})
	if err != nil {
		return nil, err
	}
	return &image, nil
}

func (i *Image) Size() (int64, error) {
	return call(func() C.int64_t { return C.qcow2_length(i.handle) })
}

// ReadAt gives what there is up to the end of the disk, as io.ReaderAt wants it; the library gives all or nothing.
func (i *Image) ReadAt(p []byte, offset int64) (int, error) {
	size, err := i.Size()
	if err != nil {
		return 0, err
	}
	if offset >= size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > size-offset {
		p, end = p[:size-offset], io.EOF
	}
	if len(p) == 0 {
		return 0, end
	}
	n, err := call(func() C.int64_t {
		return C.int64_t(C.qcow2_pread(i.handle, unsafe.Pointer(&p[0]), C.size_t(len(p)), C.uint64_t(offset)))
	})
	if err != nil {
		return 0, err
	}
	return int(n), end
}

func (i *Image) WriteAt(p []byte, offset int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := call(func() C.int64_t {
		return C.int64_t(C.qcow2_pwrite(i.handle, unsafe.Pointer(&p[0]), C.size_t(len(p)), C.uint64_t(offset)))
	})
	return int(n), err
}

func (i *Image) Sync() error {
	_, err := call(func() C.int64_t { return C.int64_t(C.qcow2_flush(i.handle)) })
	return err
}

func (i *Image) Close() error {
	_, err := call(func() C.int64_t { return C.int64_t(C.qcow2_close(i.handle)) })
	return err
}

func run(path string) error {
	if err := Create(path, 1<<30); err != nil {
		return err
	}
	disk, err := Open(path, 0)
	if err != nil {
		return err
	}
	out, back := bytes.Repeat([]byte("go"), 2048), make([]byte, 4096)
	if _, err = disk.WriteAt(out, 12345); err == nil {
		err = disk.Sync()
	}
	if err == nil {
		_, err = disk.ReadAt(back, 12345)
	}
	if err == nil && !bytes.Equal(out, back) {
		err = errors.New("what was read differs")
	}
	if closed := disk.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	if _, err = Open(path+".missing", 0); !errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("a missing image: %v", err)
	}
	fmt.Println("equal; and then:", err)
	return nil
}

func main() {
	path := "disk.qcow2"
	if len(os.Args) > 1 {
		path = os.Args[1]
	}
	if err := run(path); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
