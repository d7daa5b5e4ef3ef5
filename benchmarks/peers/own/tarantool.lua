-- The same 1000 slots in Tarantool, in memory only: started with the port as its argument, in a
-- directory of its own. It listens last, so whoever can connect finds the space made.
box.cfg{wal_mode = 'none', memtx_memory = 64 * 1024 * 1024, log_level = 'error'}
local slots = box.schema.space.create('slots', {id = 512})
slots:create_index('primary', {parts = {{1, 'unsigned'}}})
box.schema.user.grant('guest', 'read,write', 'space', 'slots')
box.cfg{listen = '127.0.0.1:' .. arg[1]}
