-- Idle threads.

-- name: database_time
-- Tell the time in Postgres, in seconds since 1970.
select extract(epoch from now())::float8 as seconds

-- name: page_of_threads
-- Find the next threads in the order of their ids, and how old each is: 'recent' if one of its checkpoints, in any
-- namespace, has an id that was made since, 'undated' if one has an id that tells no time, else 'idle'. A thread's
-- first index entry leads to the next thread's, and only ids are read, so that this costs what the primary key's
-- index takes, not the table.
with recursive threads (thread_id, number) as (
    (
        select thread_id, 1 from checkpoints
        where %(after)s::text is null or thread_id > %(after)s::text
        order by thread_id limit 1
    )
    union all
    select (
        select c.thread_id from checkpoints c where c.thread_id > threads.thread_id order by c.thread_id limit 1
    ), number + 1
    from threads where thread_id is not null and number < %(limit)s
)
select
    threads.thread_id, age.age,
    case age.age when 'idle' then (
        select count(*) from checkpoints c where c.thread_id = threads.thread_id
    ) else 0 end as checkpoints
from threads
cross join lateral (
    select case
        when exists (
            select from checkpoints c where c.thread_id = threads.thread_id and c.checkpoint_id >= %(since)s
              and c.checkpoint_id ~ %(dated)s
        ) then 'recent'
        when exists (
            select from checkpoints c where c.thread_id = threads.thread_id and c.checkpoint_id !~ %(dated)s
        ) then 'undated'
        else 'idle'
    end as age
) as age
where threads.thread_id is not null

-- name: count_threads
-- Count the rows of threads.
select
    (select count(*) from checkpoints where thread_id = any(%(threads)s)) as checkpoints,
    (select count(*) from checkpoint_blobs where thread_id = any(%(threads)s)) as blobs,
    (select count(*) from checkpoint_writes where thread_id = any(%(threads)s)) as writes

-- name: delete_idle
-- Delete threads. Return how many rows that were, and the threads that were not idle after all: they had a
-- checkpoint made since, or one whose id tells no time. The caller rolls back for those.
with deleted_checkpoints as (
    delete from checkpoints where thread_id = any(%(threads)s) returning thread_id, checkpoint_id
), deleted_blobs as (
    delete from checkpoint_blobs where thread_id = any(%(threads)s) returning 1
), deleted_writes as (
    delete from checkpoint_writes where thread_id = any(%(threads)s) returning 1
)
select
    (select count(*) from deleted_checkpoints) as checkpoints,
    (select count(*) from deleted_blobs) as blobs,
    (select count(*) from deleted_writes) as writes,
    array(
        select distinct thread_id from deleted_checkpoints
        where checkpoint_id >= %(since)s or checkpoint_id !~ %(dated)s
    ) as not_idle

-- name: threads_left
-- Find those of some threads that have checkpoints.
select distinct thread_id from checkpoints where thread_id = any(%(threads)s)
