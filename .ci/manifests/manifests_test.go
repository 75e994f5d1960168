// Package manifests holds what examples/cluster has for containers against what
// Docker Compose and Kubernetes read themselves. It is a module of its own, so that
// their modules are not the plugin's.
package manifests

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

const cluster = "../../examples/cluster/"

func TestCompose(t *testing.T) {
	project, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir:  cluster,
		ConfigFiles: []types.ConfigFile{{Filename: filepath.Join(cluster, "compose.yaml")}},
		Environment: types.Mapping{"POSTGRES_PASSWORD": "p", "MASTER_KEY": "k"},
	}, func(o *loader.Options) { o.SetProjectName("cluster", true) })
	if err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(maps.Keys(project.Services)), []string{"balancer", "node1", "node2", "node3", "postgres"}; !slices.Equal(got, want) {
		t.Errorf("the services are %q, want %q", got, want)
	}
	for name, service := range project.Services {
		if name == "postgres" {
			continue
		}
		for variable := range service.Environment {
			checkVariable(t, name, variable)
		}
	}
}

func TestKubernetes(t *testing.T) {
	documents := strings.Split(read(t, "kubernetes.yaml"), "\n---\n")
	if len(documents) != 2 {
		t.Fatalf("%d documents, want a Deployment and a Service", len(documents))
	}
	var deployment appsv1.Deployment
	var service corev1.Service
	if err := yaml.UnmarshalStrict([]byte(documents[0]), &deployment); err != nil {
		t.Error(err)
	}
	if err := yaml.UnmarshalStrict([]byte(documents[1]), &service); err != nil {
		t.Error(err)
	}
	if deployment.APIVersion != "apps/v1" || deployment.Kind != "Deployment" || service.APIVersion != "v1" || service.Kind != "Service" {
		t.Errorf("they are %s and %s", deployment.GroupVersionKind(), service.GroupVersionKind())
	}
	pod := deployment.Spec.Template
	for key, value := range service.Spec.Selector {
		if pod.Labels[key] != value || deployment.Spec.Selector.MatchLabels[key] != value {
			t.Errorf("the pods are not found by %s=%s", key, value)
		}
	}
	if len(service.Spec.Selector) == 0 || len(pod.Spec.Containers) != 1 {
		t.Fatal("the service has no selector, or the pod not one container")
	}
	for _, variable := range pod.Spec.Containers[0].Env {
		checkVariable(t, "the pod", variable.Name)
	}
}

// checkVariable checks that a Caddyfile asks for a variable.
func checkVariable(t *testing.T, of, name string) {
	t.Helper()
	caddyfiles := read(t, "node.Caddyfile") + read(t, "balancer.Caddyfile")
	if !strings.Contains(caddyfiles, "{$"+name+":") && !strings.Contains(caddyfiles, "{env."+name+"}") {
		t.Errorf("%s has a variable %s, which no Caddyfile asks for", of, name)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(cluster, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
