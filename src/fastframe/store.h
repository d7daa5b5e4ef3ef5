/* The store, for C programs that look at it from outside: its layout, its lock,
   its slots. Plain C11 with GNU atomics; nothing of Python. */

#ifndef IPROTO_STORE_H
#define IPROTO_STORE_H

#include "layout.h"
#include "lock.h"
#include "slots.h"

#endif
