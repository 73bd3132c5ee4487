package vault

import (
	"slices"
	"time"

	"github.com/stint-dev/stint/plugins"
)

// databases tries what lists the users of databases, and looks whether their own clock ends users.
func (c *checker) databases(roles []plugins.Role) {
	for _, d := range c.backend.cfg.Databases {
		subject, remedy := "database "+d.Name, "CREATE ROLE "+d.User+" LOGIN PASSWORD …; it needs no other right"
		if d.Kind == MySQL {
			remedy = "GRANT SELECT (user) ON mysql.user TO " + d.User
		}
		c.databaseRoles(d, roles)
		lister := c.backend.databases[d.Name]
		if _, err := lister.List(c.ctx); err != nil {
			c.weakens("database-users", subject, "its users cannot be listed, so nobody sees one that vault has forgotten: "+err.Error(), remedy)
			continue
		}
		asked := time.Now()
		if server, err := lister.Clock(c.ctx); err == nil {
			c.clock(subject, server, asked, time.Now())
		}
		if off, err := lister.EventsOff(c.ctx); err == nil && off {
			c.breaks("database-events-off", subject, "it runs no events: a user that vault loses lives on",
				"event_scheduler=ON in its configuration, and SET GLOBAL event_scheduler = ON")
		}
	}
}

// databaseRoles is about names that are of no role: of users of whichever role was meant nobody sees that they were dropped.
func (c *checker) databaseRoles(d Database, roles []plugins.Role) {
	for _, name := range d.Roles {
		is := func(role plugins.Role) bool { return role.Name == name && role.Backend == c.backend.cfg.Instance }
		if roles != nil && !slices.ContainsFunc(roles, is) {
			c.weakens("database-role-unknown", "database "+d.Name, "its roles name "+name+", and "+c.backend.cfg.Instance+" has no such role",
				`write the role's name, or take "`+name+`" out of roles of database "`+d.Name+`"`)
		}
	}
}
