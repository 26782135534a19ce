-- Leases: the right of a process to have unflushed writes on a thread (mode "write_behind").

-- name: create_leases
-- Create the table of leases. Redis alone may hold the latest writes of a thread that has a row: what was
-- acknowledged is what Postgres holds, and then what the thread's journal holds beyond `position`. Without a row,
-- Postgres holds all of it.
create table if not exists checkpoint_cache_leases (
    prefix text not null, -- of the keys in Redis
    thread_id text not null,
    token text not null, -- of the lease; its journal has the same
    position bigint not null default 0, -- the number up to which the journal has been replayed
    since timestamptz not null default now(),
    moved_at timestamptz not null default now(), -- when `position` was last set
    primary key (prefix, thread_id)
)

-- name: take_leases
-- Take leases of threads that have none, in the order of their ids. Return the threads taken.
insert into checkpoint_cache_leases (prefix, thread_id, token)
select %(prefix)s, wanted.* from unnest(%(threads)s::text[], %(tokens)s::text[]) as wanted (thread_id, token)
order by wanted.thread_id
on conflict do nothing
returning thread_id

-- name: find_leases
-- Find the leases of some threads.
select thread_id, token, position from checkpoint_cache_leases
where prefix = %(prefix)s and thread_id = any(%(threads)s)

-- name: page_of_leases
-- Find the next leases in the order of their threads.
select thread_id, token, position from checkpoint_cache_leases
where prefix = %(prefix)s and thread_id > %(after)s
order by thread_id limit %(limit)s

-- name: page_of_idle_leases
-- Find the next leases, in the order of their threads, that nobody has moved for some time. A row from the future
-- counts too: a clock that was set back must not hide it.
select thread_id, token, position from checkpoint_cache_leases
where prefix = %(prefix)s and thread_id > %(after)s
  and moved_at not between now() - %(seconds)s * interval '1 second' and now()
order by thread_id limit %(limit)s

-- name: lock_leases
-- Find the leases of some threads and lock their rows, in the order of their threads.
select thread_id, token, position from checkpoint_cache_leases
where prefix = %(prefix)s and thread_id = any(%(threads)s)
order by thread_id for update

-- name: move_leases
-- Record up to which number journals have been replayed.
update checkpoint_cache_leases as l
set position = greatest(l.position, moved.position), moved_at = now()
from unnest(%(threads)s::text[], %(positions)s::bigint[]) as moved (thread_id, position)
where l.prefix = %(prefix)s and l.thread_id = moved.thread_id

-- name: end_leases
-- Delete leases by their token, and by their position where that is not null.
delete from checkpoint_cache_leases as l
using unnest(%(threads)s::text[], %(tokens)s::text[], %(positions)s::bigint[])
    as ended (thread_id, token, position)
where l.prefix = %(prefix)s and l.thread_id = ended.thread_id and l.token = ended.token
  and (ended.position is null or l.position = ended.position)

-- name: end_leases_of_threads
-- Delete the leases of threads under every prefix. Return the threads that had one.
delete from checkpoint_cache_leases where thread_id = any(%(threads)s) returning thread_id
