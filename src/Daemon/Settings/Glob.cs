namespace XenLoop.Settings;

/// <summary>A pattern for guests: <c>*</c> is any number of characters, none as well, <c>?</c> is one; all else is itself.</summary>
internal sealed class Glob(string pattern)
{
    /// <summary>By its name, or by its UUID in whatever case.</summary>
    public bool Matches(GuestIdentity guest) => Matches(guest.Name, ignoreCase: false) || Matches(guest.Uuid, ignoreCase: true);

    /// <summary>Whether it is a name like this, in this case.</summary>
    public bool MatchesName(string name) => Matches(name, ignoreCase: false);

    public override string ToString() => pattern;

    /// <summary>Only the last star is ever reconsidered, so the time is at most the product of both lengths.</summary>
    private bool Matches(string text, bool ignoreCase)
    {
        int p = 0, t = 0;
        int star = -1, resume = 0;
        while (t < text.Length)
        {
            if (p < pattern.Length && pattern[p] == '*')
            {
                star = p++;
                resume = t;
            }
            else if (p < pattern.Length && (pattern[p] == '?' || IsSame(pattern[p], text[t], ignoreCase)))
            {
                p++;
                t++;
            }
            else if (star >= 0)
            {
                // The star takes one character more.
                p = star + 1;
                t = ++resume;
            }
            else
            {
                return false;
            }
        }

        return pattern.AsSpan(p).Trim('*').IsEmpty;
    }

    private static bool IsSame(char one, char other, bool ignoreCase) =>
        one == other || (ignoreCase && char.ToLowerInvariant(one) == char.ToLowerInvariant(other));
}
