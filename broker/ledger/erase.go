package ledger

import (
	"context"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/task"
)

// erasePage is how many records are looked through at a time.
const erasePage = 500

// Erase removes the free text of a task from the ledger: its description and labels, and what lies beside its audit
// records with the salts. The records keep their hashes, which without the salts say nothing, and one more record says
// that it was done and how many texts it was. It returns that number. Backups and exported copies are not touched.
func (l *Ledger) Erase(ctx context.Context, actor audit.Actor, id task.ID) (int, error) {
	erased := 0
	_, err := l.Update(ctx, func(tx *Tx) error {
		t, err := tx.Task(id)
		if err != nil {
			return err
		}
		if erased, err = tx.eraseTexts(id.String()); err != nil {
			return err
		}
		if erased == 0 && t.Description == "" && len(t.Labels) == 0 {
			return nil
		}
		t.Description, t.Labels = "", nil
		if err = tx.UpdateTask(t, t.State); err != nil {
			return err
		}
		_, err = tx.Append(audit.Record{
			Event: audit.TextErased, Actor: actor, Task: id.String(), TaskName: t.ShortName, Count: int64(erased),
		})
		return err
	})
	return erased, err
}

// eraseTexts marks the texts of a task's records for erasing.
func (t *Tx) eraseTexts(id string) (int, error) {
	n := 0
	for start := int64(0); ; {
		entries, err := t.log.Entries(start, erasePage, id)
		if err != nil {
			return n, err
		}
		for _, e := range entries {
			texts, err := t.log.Texts(e.Index)
			if err != nil {
				return n, err
			}
			if len(texts) > 0 {
				t.erase = append(t.erase, e.Index)
				n += len(texts)
			}
			start = e.Index + 1
		}
		if len(entries) < erasePage {
			return n, nil
		}
	}
}
