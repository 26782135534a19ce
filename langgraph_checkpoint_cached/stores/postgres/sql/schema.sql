-- Tables, migrations and connections.

-- name: are_tables_there
-- Tell for each table whether it exists.
select to_regclass(name) is not null as is_there from unnest(%(tables)s::text[]) as name

-- name: upstream_version
-- Find the number of the upstream saver's last migration.
select max(v) as v from checkpoint_migrations

-- name: try_transaction_lock
-- Try to take the migration lock until the transaction ends. The number is not a parameter, so that the simple
-- protocol is used: the extended one's portal would keep its snapshot for the whole transaction, and CREATE INDEX
-- CONCURRENTLY would wait for that. The same holds for the next statement.
select pg_try_advisory_xact_lock({key}) as locked

-- name: try_session_lock
-- Try to take the migration lock until it is released.
select pg_try_advisory_lock({key}) as locked

-- name: release_session_lock
-- Release the migration lock.
select pg_advisory_unlock({key})

-- name: backend_pid
-- Tell the id of the server process behind a connection.
select pg_backend_pid() as pid

-- name: set_session_lock_timeout
-- Set the longest wait for a lock, in milliseconds, for a connection of our own.
select set_config('lock_timeout', %(ms)s::int::text, false)

-- name: set_lock_timeout
-- Set the longest wait for a lock, in milliseconds, until the transaction ends.
select set_config('lock_timeout', %(ms)s::int::text, true)

-- name: synchronous_commit
-- Tell whether a commit is acknowledged before it is durable.
select current_setting('synchronous_commit') as synchronous_commit

-- name: check_client
-- Have Postgres 14 or later check, so often in milliseconds, that the client of a statement is still there, unless
-- that is configured already.
select set_config('client_connection_check_interval', %(ms)s::int::text, false)
where current_setting('client_connection_check_interval', true) = '0'
