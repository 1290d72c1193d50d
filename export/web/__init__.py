"""A bundle as a static web page that runs it in the browser (docs/deploy/browser.md)."""
