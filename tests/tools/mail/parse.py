"""Parses the mail in the file of its argument with Python's standard library, and prints what it
found as JSON, for the tests. A defect that the parser notices is an error."""

import email
import email.policy
import json
import sys
from datetime import timezone

with open(sys.argv[1], "rb") as file:
    mail = email.message_from_binary_file(file, policy=email.policy.default)
defects = list(mail.defects) + [defect for value in mail.values() for defect in value.defects]
if defects:
    sys.exit(f"defects: {defects}")


def person(name):
    address = mail[name].addresses[0]
    return [address.display_name, address.addr_spec]


date = mail["Date"].datetime.astimezone(timezone.utc)
print(json.dumps({
    "from": person("From"),
    "to": person("To"),
    "date": date.strftime("%Y-%m-%dT%H:%M:%SZ"),
    "id": mail["Message-ID"],
    "mime": mail["MIME-Version"],
    "title": mail["Subject"],
    "parts": {
        part.get_content_type(): part.get_content()
        for part in mail.walk() if not part.is_multipart()
    },
}))
