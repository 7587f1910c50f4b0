DROP FUNCTION dhara.complete(json);
DROP FUNCTION dhara.enqueue_all(json);
DROP FUNCTION dhara.enqueue(text, json, text, integer, integer, timestamptz, double precision, text, double precision, timestamptz, text[], text, text, text, text, text, double precision, uuid);
DROP FUNCTION dhara.replace_pending(uuid, boolean, json, text, integer, integer, timestamptz);
DROP FUNCTION dhara.refuse_field(text, text);
DROP FUNCTION dhara.new_id();
