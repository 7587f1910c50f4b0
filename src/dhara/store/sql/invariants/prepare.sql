-- For the length of this transaction: room to sort millions of rows, and plans that read whole tables.
SELECT set_config('transaction_read_only', 'on', true), set_config('work_mem', '256MB', true),
       set_config('enable_seqscan', 'on', true), set_config('jit', 'off', true), set_config('statement_timeout', '0', true)
