DROP FUNCTION dhara.enqueue_all(json);
DROP FUNCTION dhara.enqueue(text, json, text, integer, integer, timestamptz, double precision, text, double precision, timestamptz, text[], text, text, uuid);
DROP FUNCTION dhara.refuse_field(text, text);
DROP FUNCTION dhara.new_id();
