"""A description of everything in a schema, as text lines, without the schema's own name: what two schemas are compared by."""

from __future__ import annotations

import re

from tests.factories import Connection

QUERIES = {
    "table": """
        SELECT c.relkind::text, c.relname, c.relpersistence::text,
               (SELECT array_agg(o ORDER BY o)::text FROM unnest(c.reloptions) AS o), c.relrowsecurity,
               obj_description(c.oid, 'pg_class')
        FROM pg_class AS c WHERE c.relnamespace = $1::text::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c')""",
    "column": """
        SELECT c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attstorage::text,
               a.attcompression::text, a.attidentity::text, a.attgenerated::text, a.attcollation,
               pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum)
        FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = $1::text::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')""",
    "index": """
        SELECT i.indrelid::regclass::text, pg_get_indexdef(i.indexrelid), c.reloptions::text, i.indisvalid
        FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid WHERE c.relnamespace = $1::text::regnamespace""",
    "constraint": """
        SELECT conrelid::regclass::text, conname, contype::text, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = $1::text::regnamespace""",
    "trigger": """
        SELECT t.tgrelid::regclass::text, t.tgname, pg_get_triggerdef(t.oid), t.tgenabled::text
        FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
        WHERE c.relnamespace = $1::text::regnamespace AND NOT t.tgisinternal""",
    "function": """
        SELECT p.proname, pg_get_function_identity_arguments(p.oid), pg_get_functiondef(p.oid),
               (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(COALESCE(p.proacl, acldefault('f', p.proowner))) AS a),
               obj_description(p.oid, 'pg_proc')
        FROM pg_proc AS p WHERE p.pronamespace = $1::text::regnamespace AND p.prokind <> 'a'""",
    "view": """
        SELECT viewname, definition FROM pg_views WHERE schemaname = $1""",
    "sequence": """
        SELECT sequencename, data_type::text, start_value, increment_by, max_value, cycle, cache_size
        FROM pg_sequences WHERE schemaname = $1""",
    "type": """
        SELECT typname, typtype::text FROM pg_type AS t WHERE typnamespace = $1::text::regnamespace
        AND NOT EXISTS (SELECT FROM pg_class AS c WHERE c.reltype = t.oid)
        AND NOT EXISTS (SELECT FROM pg_type AS e WHERE e.typarray = t.oid)""",
    "extension": """
        SELECT extname FROM pg_extension WHERE extnamespace = $1::text::regnamespace""",
}  # fmt: skip


async def describe(db: Connection, schema: str = "dhara", without: tuple[str, ...] = ("migrations",)) -> list[str]:
    """Every object of `schema`, one line each, sorted; those whose line names one of `without` are left out."""
    if await db.fetchval("SELECT to_regnamespace($1)", schema) is None:
        return []
    lines = []
    # Or names would be shown without their schema, if that is the role's.
    await db.execute("SET search_path = pg_catalog")
    for kind, query in QUERIES.items():
        for found in await db.fetch(query, schema):
            line = f"{kind}: " + " | ".join("" if value is None else str(value) for value in found)
            line = re.sub(rf'("{schema}"|\b{schema})\.(?=[a-z_])', "SCHEMA.", line)
            if not any(name in line for name in without):
                lines.append(line)
    await db.execute("RESET search_path")
    return sorted(lines)
