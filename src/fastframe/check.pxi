# Laying out a store, checking that a buffer holds one and that it is whole, repairing it.

cdef void lay_out(store_t* store, uint32_t workers, bint checked) noexcept:
    """Makes a store of zeros."""
    cdef handle_t h = attach(store, workers, 0, checked)
    cdef uint32_t i
    store.version = STORE_VERSION
    store.slots = SLOTS
    store.slot_bytes = SLOT_BYTES
    store.workers = workers
    store.size = h.size
    store.checked = checked
    store.state = READ_WRITE
    for i in range(SLOTS):
        slot_lay_out(&h, i)
    store.magic = STORE_MAGIC


cdef int attach_for_check(Py_buffer* view, handle_t* h) except -1:
    """The store in a buffer, of which the slots are there, and have hashes."""
    if <size_t>view.buf % STORE_ALIGNMENT or <size_t>view.len < store_size(0):
        raise ValueError(
            f"a store takes at least {store_size(0)} bytes, aligned to {STORE_ALIGNMENT}; "
            f"the buffer has {view.len}"
        )
    cdef store_t* store = <store_t*>view.buf
    cdef store_t found
    copy_bytes(&found, store, sizeof(store_t))
    check_header(&found, store_size(WORKERS_LIMIT))
    if not found.checked:
        raise ValueError("the store keeps no hashes of its slots, so it cannot be checked")
    h[0] = attach(store, found.workers, 0, True)
    return 0


cdef int check_header(const store_t* found, size_t size) except -1:
    """Whether this is the header of a store that fits into this many bytes.

    Args:
        found: a copy of it; others may be at work in the store itself.
    """
    if found.magic != STORE_MAGIC:
        raise ValueError("the buffer holds something that is not an iproto store")
    if found.version != STORE_VERSION:
        raise ValueError(
            f"the store has layout version {found.version}; "
            f"this program knows version {STORE_VERSION}"
        )
    if found.slots != SLOTS or found.slot_bytes != SLOT_BYTES:
        raise ValueError(
            f"the store was made for {found.slots} slots of {found.slot_bytes} bytes; "
            f"expected {SLOTS} of {SLOT_BYTES}"
        )
    if not 1 <= found.workers <= WORKERS_LIMIT or found.size != store_size(found.workers):
        raise ValueError(
            f"the store is damaged: {found.workers} workers and {found.size} bytes "
            "do not go together"
        )
    if found.checked > 1:
        raise ValueError(f"the store is damaged: its flag for hashes is {found.checked}")
    if found.size > size:
        raise ValueError(
            f"the store was made for {found.workers} workers and takes {found.size} bytes; "
            f"the buffer has {size}"
        )
    if found.state not in STATE_OF:
        raise ValueError(f"the store is damaged: its state is {found.state:#010x}")
    if found.lock.writer > found.workers:
        raise ValueError(f"the store is damaged: worker {found.lock.writer - 1} holds its lock")
    if found.lock.turn > found.workers:
        raise ValueError(
            f"the store is damaged: its lock waits for worker {found.lock.turn - 1}"
        )
    return 0


cdef object state_of(const handle_t* h):
    """The state of a store, as ``Storage.state``."""
    cdef uint32_t word = load_seq_cst(&h.store.state)
    if word not in STATE_OF:
        raise InternalError(
            f"the storage is damaged: its state is {word:#010x}; a switch sets it anew"
        )
    return STATE_OF[word]


cdef int check_heads(const handle_t* h) except -1:
    """Whether every slot can be read at all; others may be at work in it."""
    cdef content_t content
    for i in range(SLOTS):
        if not slot_read(h, i, &content):
            raise ValueError(f"the store is damaged: slot {i} has an impossible head")
    return 0


cdef int check_slots(const handle_t* h) except -1:
    """Whether every slot's current copy is what was written; nobody may be at work in it."""
    for i in range(SLOTS):
        if not slot_is_whole(h, i):
            raise ValueError(f"the store is damaged: slot {i} does not hold what was written")
    return 0


cdef list repair_slots(const handle_t* h):
    """Makes every slot whole; returns what ``Storage.repair`` returns."""
    cdef list damaged = []
    cdef slot_t* slot
    cdef uint32_t i
    cdef int whole
    for i in range(SLOTS):
        if slot_is_whole(h, i):
            continue
        slot = slot_at(h, i)
        whole = whole_copy(slot, i)
        if whole < 0:
            memset(slot, 0, sizeof(slot_t))
            slot_lay_out(h, i)
            damaged.append((i, None))
        else:
            slot.current = word_for(i, whole)
            damaged.append((i, slot.length[whole]))
    return damaged
