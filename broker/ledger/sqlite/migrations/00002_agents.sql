-- Agents whose state somebody has set. "since" is integer nanoseconds since 1970, "record" the index of the audit record.

-- +goose Up
CREATE TABLE agents (
  id      TEXT    NOT NULL PRIMARY KEY,
  state   TEXT    NOT NULL,
  since   INTEGER NOT NULL,
  set_by  TEXT    NOT NULL,
  record  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX agents_state ON agents (state, id);

-- What is alive by ID, so that a page of it is read without sorting all of it: the kill switch reads page after page.
CREATE INDEX tasks_alive ON tasks (id) WHERE due IS NOT NULL;
CREATE INDEX leases_alive ON leases (id) WHERE due IS NOT NULL;
