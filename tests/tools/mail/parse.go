// Parses the mail in the file of its argument with Go's standard library, and prints what it found
// as JSON, for the tests.
package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"os"
	"strings"
	"time"
)

// decoded returns the body of a part as text.
func decoded(encoding string, body io.Reader) string {
	switch strings.ToLower(encoding) {
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	}
	text, err := io.ReadAll(body)
	check(err)
	return string(text)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	file, err := os.Open(os.Args[1])
	check(err)
	message, err := mail.ReadMessage(file)
	check(err)
	header := message.Header
	from, err := header.AddressList("From")
	check(err)
	to, err := header.AddressList("To")
	check(err)
	date, err := header.Date()
	check(err)
	subject, err := new(mime.WordDecoder).DecodeHeader(header.Get("Subject"))
	check(err)
	kind, parameters, err := mime.ParseMediaType(header.Get("Content-Type"))
	check(err)
	parts := map[string]string{}
	if strings.HasPrefix(kind, "multipart/") {
		reader := multipart.NewReader(message.Body, parameters["boundary"])
		for {
			part, err := reader.NextRawPart()
			if err == io.EOF {
				break
			}
			check(err)
			of, _, err := mime.ParseMediaType(part.Header.Get("Content-Type"))
			check(err)
			parts[of] = decoded(part.Header.Get("Content-Transfer-Encoding"), part)
		}
	} else {
		parts[kind] = decoded(header.Get("Content-Transfer-Encoding"), message.Body)
	}
	check(json.NewEncoder(os.Stdout).Encode(map[string]any{
		"from":  []string{from[0].Name, from[0].Address},
		"to":    []string{to[0].Name, to[0].Address},
		"date":  date.UTC().Format(time.RFC3339),
		"id":    header.Get("Message-ID"),
		"mime":  header.Get("MIME-Version"),
		"title": subject,
		"parts": parts,
	}))
}
