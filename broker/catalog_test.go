package broker_test

import "github.com/stint-dev/stint/broker/resource"

// files is one file.
func files(yaml string) []resource.File { return []resource.File{{Name: "resources.yaml", YAML: yaml}} }
