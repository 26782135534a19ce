-- Deletes values of a channel.
delete from checkpoint_blobs
where thread_id = %(thread)s and checkpoint_ns = %(ns)s and channel = %(channel)s and version = any(%(versions)s)
