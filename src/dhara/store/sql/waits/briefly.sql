-- For this transaction: wait a second for a lock, and no longer. Who drives many things in turn must not stand behind one.
SELECT set_config('lock_timeout', '1s', true)
