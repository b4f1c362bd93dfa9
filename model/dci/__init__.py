"""DCI: divide, conquer, then integrate (Customized Generation Reimagined, Secs. 3.3 and 4.5)."""
