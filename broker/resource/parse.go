package resource

// Parse reads a complete set. Either there are no problems, or the set is empty and every fault is named.
func Parse(files []File, backends Backends) (Set, []Problem) {
	return parse(nil, files, backends)
}

// Update reads files over a set: their resources are added or replace those of the same name, the others stay. The
// result is checked as a whole.
func (s Set) Update(files []File, backends Backends) (Set, []Problem) {
	return parse(s.docs, files, backends)
}

// Without takes one resource away, such as "roles/orders-db-read", and checks the rest as a whole: a role that a profile
// names cannot go.
func (s Set) Without(id string, backends Backends) (Set, []Problem) {
	var rest []Document
	for _, d := range s.docs {
		if d.ID() != id {
			rest = append(rest, d)
		}
	}
	return parse(rest, nil, backends)
}

func parse([]Document, []File, Backends) (Set, []Problem) { return Set{}, nil }
