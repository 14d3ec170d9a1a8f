/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* POSIX AIO: a request on an image is done when the call that submits it returns. */
#include "hooks.h"

#include <signal.h>
#include <stdlib.h>

_Static_assert(sizeof(struct aiocb) == sizeof(struct aiocb64), "only where both are the same");

static void *call_back(void *argument)
{
    struct sigevent *event = argument;
    void (*function)(union sigval) = event->sigev_notify_function;
    union sigval value = event->sigev_value;

    free(event);
    function(value);
    return NULL;
}

static void notify(const struct sigevent *event)
{
    struct sigevent *copy;
    pthread_attr_t attributes;
    pthread_t thread;

    if (event->sigev_notify == SIGEV_SIGNAL) {
        sigqueue(getpid(), event->sigev_signo, event->sigev_value);
    } else if (event->sigev_notify == SIGEV_THREAD && (copy = malloc(sizeof *copy)) != NULL) {
        *copy = *event;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        if (pthread_create(&thread, &attributes, call_back, copy) != 0) {
            free(copy);
        }
        pthread_attr_destroy(&attributes);
    }
}

static int done(struct aiocb64 *request, ssize_t result)
{
    request->__error_code = result < 0 ? (int)-result : 0;
    request->__return_value = result < 0 ? -1 : result;
    notify(&request->aio_sigevent);
    return 0;
}

static int serve(struct aiocb64 *request, int operation)
{
    struct view *view = view_get(request->aio_fildes);
    void *buffer = __extension__(void *) request->aio_buf;
    ssize_t result = -EBADF;

    HIT("aio");
    if (view == NULL) {
        return (int)answer(-EBADF);
    }
    switch (operation) {
    case LIO_READ: result = view_pread(view, buffer, request->aio_nbytes, request->aio_offset); break;
    case LIO_WRITE: result = view_pwrite(view, buffer, request->aio_nbytes, request->aio_offset); break;
    default: result = view_flush(view); break;
    }
    view_release(view);
    return done(request, result);
}

static int aio_any(struct aiocb64 *request, int operation, int (*real)(struct aiocb64 *))
{
    return is_view(request->aio_fildes) ? serve(request, operation) : real(request);
}

HOOK int aio_read(struct aiocb *request)
{
    return aio_any((struct aiocb64 *)request, LIO_READ, REAL(aio_read64));
}

HOOK int aio_read64(struct aiocb64 *request)
{
    return aio_any(request, LIO_READ, REAL(aio_read64));
}

HOOK int aio_write(struct aiocb *request)
{
    return aio_any((struct aiocb64 *)request, LIO_WRITE, REAL(aio_write64));
}

HOOK int aio_write64(struct aiocb64 *request)
{
    return aio_any(request, LIO_WRITE, REAL(aio_write64));
}

HOOK int aio_fsync64(int operation, struct aiocb64 *request)
{
    if (!is_view(request->aio_fildes)) {
        return REAL(aio_fsync64)(operation, request);
    }
    return operation == O_SYNC || operation == O_DSYNC ? serve(request, LIO_NOP) : (int)answer(-EINVAL);
}

HOOK int aio_fsync(int operation, struct aiocb *request)
{
    return aio_fsync64(operation, (struct aiocb64 *)request);
}

/* The images' requests are done; the rest is the C library's. */
HOOK int lio_listio64(int mode, struct aiocb64 *const requests[], int count, struct sigevent *event)
{
    struct aiocb64 **rest;
    int left = 0, result = 0;
    bool any = false;

    for (int i = 0; i < count; i++) {
        any |= requests[i] != NULL && is_view(requests[i]->aio_fildes);
    }
    if (!any) {
        return REAL(lio_listio64)(mode, requests, count, event);
    }
    rest = calloc((size_t)count, sizeof *rest);
    if (rest == NULL) {
        return (int)answer(-EAGAIN);
    }
    for (int i = 0; i < count; i++) {
        if (requests[i] == NULL || requests[i]->aio_lio_opcode == LIO_NOP) {
            continue;
        }
        if (!is_view(requests[i]->aio_fildes)) {
            rest[left++] = requests[i];
        } else if (serve(requests[i], requests[i]->aio_lio_opcode) != 0 || requests[i]->__error_code != 0) {
            result = -EIO;
        }
    }
    if (left > 0) {
        int other = REAL(lio_listio64)(mode, rest, left, event);

        result = other != 0 ? -errno : result;
    } else if (mode == LIO_NOWAIT && event != NULL) {
        notify(event);
    }
    free(rest);
    return (int)answer(mode == LIO_WAIT || left > 0 ? result : 0);
}

HOOK int lio_listio(int mode, struct aiocb *const requests[], int count, struct sigevent *event)
{
    return lio_listio64(mode, (struct aiocb64 *const *)requests, count, event);
}
