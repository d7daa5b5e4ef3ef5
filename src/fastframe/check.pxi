# Laying out a store, checking that a buffer holds one and that it is whole, repairing it.

cdef void lay_out(store_t* store, uint32_t workers, bint checked) noexcept:
    """Makes a store of zeros."""
    cdef slot_t* slots = slots_of(store)
    cdef uint32_t i
    store.version = STORE_VERSION
    store.slots = SLOTS
    store.slot_bytes = SLOT_BYTES
    store.workers = workers
    store.size = store_size(workers)
    store.checked = checked
    store.state = READ_WRITE
    if checked:
        for i in range(SLOTS):
            slots[i].check[0] = slot_hash(i, slots[i].bytes[0], 0)
    store.magic = STORE_MAGIC


cdef store_t* checked_store(Py_buffer* view) except NULL:
    """The store in a buffer, of which the slots are there, and have hashes."""
    if <size_t>view.buf % 64 or <size_t>view.len < store_size(0):
        raise ValueError(
            f"a store takes at least {store_size(0)} bytes, aligned to 64; "
            f"the buffer has {view.len}"
        )
    cdef store_t* store = <store_t*>view.buf
    check_header(store, store_size(1024))
    if not store.checked:
        raise ValueError("the store keeps no hashes of its slots, so it cannot be checked")
    return store


cdef int check_header(store_t* found, size_t size) except -1:
    """Whether this is a store that fits into so many bytes; others may be at work in it."""
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
    if not 1 <= found.workers <= 1024 or found.size != store_size(found.workers):
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
    if load_relaxed(&found.state) not in STATE_OF:
        raise ValueError(f"the store is damaged: its state is {found.state:#010x}")
    if load_relaxed(&found.writer) > found.workers:
        raise ValueError(f"the store is damaged: worker {found.writer - 1} holds its lock")
    return 0


cdef int check_heads(store_t* store) except -1:
    """Whether every slot can be read at all; others may be at work in it."""
    cdef slot_t* slots = slots_of(store)
    for i in range(SLOTS):
        if not has_head(&slots[i]):
            raise ValueError(f"the store is damaged: slot {i} has an impossible head")
    return 0


cdef int check_slots(store_t* store) except -1:
    """Whether every slot's current copy is what was written; nobody may be at work in it."""
    cdef slot_t* slots = slots_of(store)
    cdef uint32_t i
    for i in range(SLOTS):
        if not is_whole(&slots[i], i, slots[i].current & 1):
            raise ValueError(f"the store is damaged: slot {i} does not hold what was written")
    return 0


cdef list repair_slots(store_t* store):
    """Makes every slot whole; returns what ``Storage.repair`` returns."""
    cdef slot_t* slots = slots_of(store)
    cdef list damaged = []
    cdef uint32_t i
    cdef int whole
    for i in range(SLOTS):
        if has_head(&slots[i]) and is_whole(&slots[i], i, slots[i].current & 1):
            continue
        whole = whole_copy(&slots[i], i)
        if whole < 0:
            memset(&slots[i], 0, sizeof(slot_t))
            slots[i].check[0] = slot_hash(i, slots[i].bytes[0], 0)
            damaged.append((i, None))
        else:
            slots[i].current = <uint32_t>-whole
            damaged.append((i, slots[i].length[whole]))
    return damaged
