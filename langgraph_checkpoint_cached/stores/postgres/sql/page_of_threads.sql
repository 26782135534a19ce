-- Threads in the order of their ids, those after the one named, and of each how old it is: 'recent' if one of its
-- checkpoints, in any namespace, has an id that was made since, 'undated' if one has an id that no time can be read
-- from, else 'idle'. A thread's first index entry leads to the next thread's, and ids are all that is read of rows, so
-- that this costs what the primary key's index takes, not the table.
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
