-- Those of some threads that have checkpoints.
select distinct thread_id from checkpoints where thread_id = any(%(threads)s)
