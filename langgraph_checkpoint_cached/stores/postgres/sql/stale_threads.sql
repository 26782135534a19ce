-- Stale threads: their entries in Redis may be stale, because a write could not be announced there.

-- name: create_stale_threads
-- Create the table of stale threads. The transaction of a write that Redis does not confirm inserts a row; whoever
-- reaches Redis invalidates the thread there and deletes the row. `mark` tells the row that was seen from one that
-- another write has renewed since.
create table if not exists checkpoint_cache_stale_threads (
    prefix text not null, -- of the keys in Redis
    thread_id text not null,
    mark text not null,
    since timestamptz not null default now(),
    primary key (prefix, thread_id)
)

-- name: insert_stale_thread
-- Mark a thread stale. `bulk_insert` extends the statement to many rows, hence its plain placeholders.
insert into checkpoint_cache_stale_threads (prefix, thread_id, mark) values (%s, %s, %s)
on conflict (prefix, thread_id) do update set mark = excluded.mark

-- name: page_of_stale_threads
-- Find the next stale threads in the order of their ids.
select thread_id, mark from checkpoint_cache_stale_threads
where prefix = %(prefix)s and (%(after)s::text is null or thread_id > %(after)s)
order by thread_id limit %(limit)s

-- name: delete_stale_threads
-- Delete rows unless they have been renewed since they were seen, or are being renewed or deleted now.
with free as (
    select s.thread_id from checkpoint_cache_stale_threads as s
    join unnest(%(threads)s::text[], %(marks)s::text[]) as seen (thread_id, mark) using (thread_id, mark)
    where s.prefix = %(prefix)s
    for update of s skip locked
)
delete from checkpoint_cache_stale_threads as s using free
where s.prefix = %(prefix)s and s.thread_id = free.thread_id
