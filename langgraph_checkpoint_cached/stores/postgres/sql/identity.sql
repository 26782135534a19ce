-- Identity of Postgres: which of its histories a process knows, and what each transaction compares.

-- name: identity
-- Tell what identifies this Postgres: {facts}, each of which is null where it is not known. A standby has none.
select pg_is_in_recovery() as is_standby, extract(epoch from clock_timestamp())::float8 as seconds,
    current_setting('server_version_num')::int as version, {facts}

-- name: guard
-- Begin a transaction that writes. Its lock is what readers look for when its fence is past its deadline; it comes
-- first, so that a transaction which takes it too late to be seen fails here, as does one under another identity
-- than its process knows, {differs}. The casts are the way to fail in plain SQL.
select {guard} as guarded

-- name: guard_condition
-- Fail, or return 1. The numbers are not parameters, so that every process has one statement.
case
    when pg_advisory_xact_lock_shared({key}, {number}) is null then 0
    when clock_timestamp() > to_timestamp(%s) then concat('checkpoint_cache: too late ', now())::int
    when {differs} then concat('checkpoint_cache: another identity ', now())::int
    else 1
end

-- name: is_settled
-- Tell whether no transaction is left of some processes: one that begins now fails at its deadline, which is over.
select not pg_is_in_recovery() and not ({differs}) and not exists (
    select from pg_locks where locktype = 'advisory' and objsubid = 2 and classid = {key} and objid = any(%s::oid[])
) as is_settled

-- name: may_fill
-- Tell whether what this Postgres holds may be stored in Redis: it is no standby, and the one that is known.
select not pg_is_in_recovery() and not ({differs}) as may_fill

-- name: missing_parents
-- Find, of some checkpoints, those that do not exist.
select wanted.* from unnest(%s::text[], %s::text[], %s::text[]) as wanted (thread_id, checkpoint_ns, checkpoint_id)
where not exists (
    select from checkpoints as c
    where c.thread_id = wanted.thread_id and c.checkpoint_ns = wanted.checkpoint_ns
      and c.checkpoint_id = wanted.checkpoint_id
)
