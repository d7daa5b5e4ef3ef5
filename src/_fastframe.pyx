# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, freethreading_compatible=False, auto_pickle=False
"""Frames, slots and replies: everything of iproto that must be C.

One module of many parts, in ``src/fastframe``; the compiler sees all of them at
once. ``*.h`` is plain C, without Python; each has a ``.pxi`` of its name that
declares to Cython what the other parts use of it.

    layout      what stands where in the store: slots, workers' areas, header
    lock        a read-write lock between threads and between processes
    slots       the bytes of a slot that count, writing them, their hash
    wire        integers as the wire has them, and the few types of MsgPack
    numbers     functions, return codes, states, and the counters' rows and columns
    limits      tunables, each with its unit and reason
    counters    histograms of service times, and sums for a scrape
    check       laying out a store, checking and repairing it
    scratch     memory in which chunks are received and replies are built
    arguments   what callers give, as C has it
    hold        one hold of the lock for several frames, and the state under it
    execute     the rules of the functions over the store: (store, Op) to Result
    storage     Storage: slots and a state over a buffer
    decode      Request to Op: which bodies the functions over the store take
    reply       Result to bytes
    buffer      bytes that wait, in and out
    socket      receiving and sending
    bodycheck   one pass over a body before anything is built of it
    gob         the encoding of Go's net/rpc (gob.h, gobcall.h, gobreply.h)
    functions   UserFunction: how bodies are read; Call and CallBudget
    clients     what each client may still do, in memory that workers share
    guard       what a client may do: the functions that it may call, and its rate
    turn        Turn: the work of a turn of the loop, shared by all connections
    server      ServerFrames: frames in, replies out
    scan        bytes to Requests, and who answers each
    rate        scanning no more than the client's rate permits
    calls       calls of user functions: they wait, run and are answered
    netrpc      bytes of Go's net/rpc to calls, and their replies
    requests    requests to bytes
    dialect     which dialect a server speaks
    pending     requests that wait for replies
    client      ClientFrames: requests out, replies in
    replies     bytes to replies, and these to what waits for them

The way of the data, on the server: ``ServerFrames.receive`` takes what a socket
has received, executes every built-in frame in it against ``Storage`` and sends
all replies with one call. Calls of user functions wait in a queue; plain ones run
in the same call, for others see ``start_calls``.
(``feed`` does the same from bytes to bytes.)
On the client: ``ClientFrames`` builds requests into one outgoing buffer and
matches a received chunk's replies to the requests that wait for them.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.dict cimport PyDict_GetItem
from cpython.exc cimport PyErr_Clear
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF
from cpython.tuple cimport PyTuple_GET_ITEM
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_CheckExact
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport (
    INT32_MAX,
    INT64_MAX,
    INT64_MIN,
    int64_t,
    uint8_t,
    uint32_t,
    uint64_t,
)
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset, strlen

import mmap
import os

from iproto.errors import (
    DialectError,
    IllegalParamsError,
    InternalError,
    IprotoError,
    ProtocolError,
    ReplyTooLongError,
    TextError,
    error_from_reply,
)
from iproto.wire import CloseReason, FuncID, Header, Response, ReturnCode, State

include "fastframe/layout.pxi"
include "fastframe/lock.pxi"
include "fastframe/slots.pxi"
include "fastframe/wire.pxi"
include "fastframe/numbers.pxi"
include "fastframe/limits.pxi"
include "fastframe/counters.pxi"
include "fastframe/check.pxi"
include "fastframe/scratch.pxi"
include "fastframe/arguments.pxi"
include "fastframe/hold.pxi"
include "fastframe/execute.pxi"
include "fastframe/storage.pxi"
include "fastframe/decode.pxi"
include "fastframe/reply.pxi"
include "fastframe/buffer.pxi"
include "fastframe/socket.pxi"
include "fastframe/bodycheck.pxi"
include "fastframe/gob.pxi"
include "fastframe/functions.pxi"
include "fastframe/clients.pxi"
include "fastframe/guard.pxi"
include "fastframe/turn.pxi"
include "fastframe/server.pxi"
include "fastframe/scan.pxi"
include "fastframe/rate.pxi"
include "fastframe/calls.pxi"
include "fastframe/netrpc.pxi"
include "fastframe/requests.pxi"
include "fastframe/dialect.pxi"
include "fastframe/pending.pxi"
include "fastframe/client.pxi"
include "fastframe/replies.pxi"
