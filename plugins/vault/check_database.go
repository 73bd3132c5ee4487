package vault

import "github.com/stint-dev/stint/plugins/vault/internal/users"

// databases tries what lists the users of databases, and looks whether their own clock ends users.
func (c *checker) databases() {
	for _, d := range c.backend.cfg.Databases {
		subject, remedy := "database "+d.Name, "CREATE ROLE "+d.User+" LOGIN PASSWORD …; it needs no other right"
		if d.Kind == users.MySQL {
			remedy = "GRANT SELECT (user) ON mysql.user TO " + d.User
		}
		lister := c.backend.databases[d.Name]
		if _, err := lister.List(c.ctx); err != nil {
			c.weakens("database-users", subject, "its users cannot be listed, so nobody sees one that vault has forgotten: "+err.Error(), remedy)
			continue
		}
		if off, err := lister.EventsOff(c.ctx); err == nil && off {
			c.breaks("database-events-off", subject, "it runs no events: a user that vault loses lives on",
				"event_scheduler=ON in its configuration, and SET GLOBAL event_scheduler = ON")
		}
	}
}
