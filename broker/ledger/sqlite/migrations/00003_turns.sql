-- The queue of a lane can pass over a task's leases without reading them.

-- +goose Up
DROP INDEX leases_due;
CREATE INDEX leases_due ON leases (lane, due, task, state, stuck) WHERE due IS NOT NULL;
