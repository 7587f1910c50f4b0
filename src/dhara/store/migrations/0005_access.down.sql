DROP FUNCTION dhara.refuse_role CASCADE;  -- with the trigger of `dhara migrate roles`
GRANT EXECUTE ON FUNCTION dhara.refuse_move, dhara.refuse_truncate, dhara.new_id, dhara.refuse_field, dhara.replace_pending,
    dhara.enqueue, dhara.enqueue_all, dhara.complete, dhara.refuse_change TO PUBLIC;
DROP TABLE dhara.queue_limits;
DROP TABLE dhara.api_keys;
