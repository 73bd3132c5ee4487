package sqlite

import "github.com/stint-dev/stint/broker/ledger"

// Resources returns all, by name.
func (r *rows) Resources() ([]ledger.Resource, error) {
	var out []ledger.Resource
	err := r.s.each("SELECT name, yaml, source FROM resources ORDER BY name", nil, func(scan func(...any) error) error {
		var res ledger.Resource
		err := scan(&res.Name, &res.YAML, &res.Source)
		out = append(out, res)
		return err
	})
	return out, err
}

// PutResource adds or replaces one.
func (r *rows) PutResource(res ledger.Resource) error {
	_, err := r.s.exec("INSERT INTO resources (name, yaml, source) VALUES (?, ?, ?) "+
		"ON CONFLICT (name) DO UPDATE SET yaml = excluded.yaml, source = excluded.source", res.Name, res.YAML, res.Source)
	return err
}

// DeleteResource removes one, or answers ErrNotFound.
func (r *rows) DeleteResource(name string) error {
	n, err := r.s.exec("DELETE FROM resources WHERE name = ?", name)
	if err == nil && n == 0 {
		return ledger.ErrNotFound
	}
	return err
}
