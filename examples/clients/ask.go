// Reveals a key after a second factor, with Go's standard library.
//
//	go run examples/clients/ask.go alice
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"
)

var sidecar = "http://127.0.0.1:8004"

// Go never sends requests to loopback addresses through a proxy.
var client = http.Client{Timeout: 15 * time.Second}

// refusal is a refusal of the sidecar: its sentence, and how long an earlier code is valid.
type refusal struct {
	Detail   string `json:"detail"`
	InFlight string `json:"code_in_flight_until"`
}

func (refused *refusal) Error() string { return refused.Detail }

// ask returns nil if the sidecar answers with status 200, and otherwise an error.
func ask(path string, fields map[string]string) error {
	body, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	reply, err := client.Post(sidecar+path, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	if reply.StatusCode == http.StatusOK {
		return nil
	}
	refused := &refusal{}
	if err := json.NewDecoder(reply.Body).Decode(refused); err != nil {
		return err
	}
	return refused
}

func revealKey(username string, readCode func() string) (string, error) {
	var refused *refusal
	err := ask("/auth/generate", map[string]string{"username": username})
	// A code that was sent before is still valid.
	if err != nil && !(errors.As(err, &refused) && refused.InFlight != "") {
		return "", err
	}
	fields := map[string]string{"username": username, "otp_code": readCode()}
	if err := ask("/auth/verify", fields); err != nil {
		return "", err
	}
	return "here is your key", nil
}

func main() {
	username := "alice"
	if len(os.Args) > 1 {
		username = os.Args[1]
	}
	if address := os.Getenv("TWOFACTOR_URL"); address != "" {
		sidecar = address
	}
	if seconds, err := time.ParseDuration(os.Getenv("TWOFACTOR_TIMEOUT") + "s"); err == nil {
		client.Timeout = seconds
	}
	key, err := revealKey(username, func() (code string) {
		fmt.Print("Code: ")
		fmt.Scanln(&code)
		return code
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(key)
}
